"""LoRA students: what trains, and the files of adapters beside the merged student, as the engine reads them."""

import pytest
import torch
from safetensors import safe_open

from salt.checkpoints import load_student, read_checkpoint, save_diffusers
from salt.checkpoints.lora import read_lora
from salt.pipeline import SaltPipelineOutput
from salt.pipeline.from_options import PipelineOptions, load_pipeline
from salt.spec import TINY_FOLDER
from tests.helpers import tiny_recipes
from train.config.recipe import RecipeError
from train.config.validation import check_settings
from train.lora_adapters import adapter_path, export_adapter
from train.methods.sc_dmd import SCDMDTrainer
from train.models import build_critic


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after an update with adapters of alpha 2 on student and critic, their base weights, and the export."""
    folder = tmp_path_factory.mktemp("lora")
    save_diffusers(tiny_recipes.model(1).bfloat16(), folder / "student")  # as most checkpoints are stored
    recipe = tiny_recipes.recipe(
        folder,
        models=dict(lora_rank=4, lora_alpha=2, lora_critic=True),
        optimisation=dict(updates=1, critic_per_generator=1),
    )
    trainer = SCDMDTrainer(recipe)
    frozen = {name: layer_of(learner).base_layer.weight.clone() for name, learner in trainer.learners.items()}
    trainer.run()
    return trainer, frozen, trainer.export(folder / "export" / "lora.safetensors")


def layer_of(learner):
    return learner.model.model.blocks[0].attn1.to_q


def test_only_the_adapters_of_student_and_critic_train(trained):
    trainer, frozen, _ = trained
    for name, learner in trainer.learners.items():
        assert torch.equal(layer_of(learner).base_layer.weight, frozen[name])
        assert layer_of(learner).lora_B["default"].weight.abs().max() > 0
        assert layer_of(learner).scaling["default"] == 0.5


def test_the_lora_file_gives_the_merged_students_bits(trained):
    trainer, frozen, path = trained
    lora = adapter_path(path, "student")
    merged = load_student(path, dtype=torch.float32)
    start = load_student(trainer.recipe.models.student, dtype=torch.float32, lora=lora)
    assert read_lora(lora).summary() | {"layers": None} == {
        "layers": None, "rank": 4, "alpha": 2, "scale": 0.5, "whole differences": None
    }  # fmt: skip
    assert not torch.allclose(merged.blocks[0].attn1.to_q.weight, frozen["student"], atol=1e-5)
    for name, value in merged.state_dict().items():
        assert torch.equal(start.state_dict()[name].bfloat16().float(), value), name
    spec = read_checkpoint(path).spec
    assert spec is not None and spec.frames_per_block == 3


def test_the_critics_adapter_is_a_file_of_its_own(trained):
    trainer, _, path = trained
    critic = read_lora(adapter_path(path, "critic"))
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "lora.safetensors", "lora_critic_lora.safetensors", "lora_lora.safetensors"
    ]  # fmt: skip
    factors = critic.layers["blocks.0.attn1.to_q"]
    assert torch.equal(factors.up, layer_of(trainer.critic).lora_B["default"].weight.detach())
    critic.check_fits(load_student(trainer.recipe.models.teacher, dtype=torch.float32))


@pytest.mark.parametrize("own, width, base", [(False, 48, "teacher"), (False, 64, "student"), (True, 64, "own")])
def test_the_critics_file_names_the_checkpoint_that_it_began_as(own, width, base, tmp_path):
    save_diffusers(tiny_recipes.model(2, ffn_dim=width), tmp_path / "teacher")
    save_diffusers(tiny_recipes.model(3), tmp_path / "own")
    models = dict(lora_rank=2, lora_critic=True, critic=str(tmp_path / "own") if own else "")
    recipe = tiny_recipes.recipe(tmp_path, models=models)
    critic = build_critic(recipe, torch.device("cpu"))
    start = load_student(tmp_path / base, dtype=torch.float32).blocks[0].attn1.to_q.weight
    assert torch.equal(critic.blocks[0].attn1.to_q.base_layer.weight, start)
    export_adapter(critic.state_dict(), recipe, "critic", tmp_path / "student.safetensors")
    with safe_open(adapter_path(tmp_path / "student.safetensors", "critic"), "pt") as file:
        assert file.metadata()["base"] == str(tmp_path / base)


def test_generate_takes_the_lora_file(trained):
    """The pipeline of `salt generate --lora FILE` and the one of the merged student make the same clip."""
    trainer, _, path = trained
    clips = []
    for model, lora in ((path, None), (trainer.recipe.models.student, adapter_path(path, "student"))):
        options = PipelineOptions(str(model), TINY_FOLDER, lora=lora, dtype="bfloat16")
        pipe = load_pipeline(options, torch.device("cpu"))
        out = pipe("a red circle", num_frames=9, height=32, width=32, num_inference_steps=2, seed=1, output_type="pt")
        assert isinstance(out, SaltPipelineOutput)
        clips.append(out.latents)
    assert torch.equal(*clips)


@pytest.mark.parametrize("key, value", [("lora_alpha", 8), ("lora_critic", True)])
def test_settings_of_an_adapter_need_one(tmp_path, key, value):
    with pytest.raises(RecipeError, match=f"models.{key}={value!r} has no effect without models.lora_rank"):
        check_settings(tiny_recipes.recipe(tmp_path, models={key: value}))
