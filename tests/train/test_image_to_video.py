"""Image to video in blocks: clips that begin with a picture's latent, from the picture to the video."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from salt import cli
from salt.conditioning import Conditioning
from salt.io.video import read_video
from salt.models.causal_model import CausalModel
from salt.models.streaming_vae import encode_video
from salt.noise import SeededNoise
from salt.pipeline import SaltPipeline
from salt.pipeline.start_image import start_pixels
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule
from tests.helpers import resumed_run, stage_recipes, tiny_recipes, tiny_system
from train.__main__ import main
from train.config.loader import load_recipe
from train.config.recipe import RecipeError
from train.data.prompts import Prompts
from train.data.start_images import StartImages
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout.gradient_rollout import rollout_with_grad
from train.rollout.random_draws import UpdateDraws
from train.rollout.reference_rollout import rollout_reference

TEXT = Conditioning(torch.randn(2, 5, 4096, generator=torch.Generator().manual_seed(1)))
SIZE = ("--width", "64", "--height", "64")
FIRST = torch.randn(2, 16, 1, 4, 4, generator=torch.Generator().manual_seed(2))


def test_a_clip_in_training_is_the_one_that_sampling_makes_of_the_picture(tmp_path):
    recipe, student = stage_recipes.i2v_recipe(tmp_path), tiny_recipes.model(1)
    draws = UpdateDraws(Schedule.of(4), 3, None, 3.0)
    x0 = rollout_with_grad(student, TEXT, recipe, draws, [5, 6], gradient=True, first=FIRST).x0
    memory = student.new_memory(recipe.policy, 2, 4, 4, 7)
    settings = RolloutSettings(Schedule.of(4), independent_first_frame=True)
    noise = SeededNoise([5, 6], 2, 16, 4, 4)
    with torch.no_grad():
        blocks = [*rollout(CausalModel(student), TEXT, memory, noise, 6, settings, initial_latents=FIRST)]
    assert torch.equal(x0[:, :, :1], FIRST) and [b.start for b in blocks] == [1, 4]
    torch.testing.assert_close(x0[:, :, 1:].detach(), torch.cat([b.latents for b in blocks], 2), atol=1e-5, rtol=1e-5)
    x0[:, :, 4:].sum().backward()
    assert sum(p.grad.abs().sum() for p in student.parameters() if p.grad is not None) > 0


def test_the_reference_begins_with_the_picture_too(tmp_path, monkeypatch):
    recipe, student = stage_recipes.i2v_recipe(tmp_path), tiny_recipes.model(1)
    draws = UpdateDraws(Schedule.of(2), 1, None, 3.0)
    result = rollout_with_grad(student, TEXT, recipe, draws, [5, 6], gradient=False, first=FIRST)
    monkeypatch.setattr(type(recipe), "schedule", lambda self, nfe: Schedule.of(2))  # a reference on the same list
    reference = rollout_reference(student, TEXT, recipe, draws, result, [7, 8], FIRST)
    assert torch.equal(reference, result.x0)


def test_pictures_belong_to_prompts_and_students_of_a_kind(tmp_path):
    recipe = stage_recipes.i2v_recipe(tmp_path)
    batch = Prompts(recipe, torch.device("cpu")).batch(0, range(3), "generator")
    order = [stage_recipes.CAPTIONS.index(prompt) for prompt in batch.prompts]
    expected = [torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in order]
    assert batch.first is not None and torch.equal(batch.first, torch.stack(expected))
    with pytest.raises(RecipeError, match="000000.safetensors with latent, expected image, channels"):
        StartImages(recipe, torch.device("cpu"), list(stage_recipes.CAPTIONS))([0])


def test_a_resumed_run_has_the_bits_of_one_that_goes_on(tmp_path):
    few = dict(rollout=dict(share={2: 1.0}), loss=dict(semigroup=0.0, align="none"))
    recipe = stage_recipes.i2v_recipe(tmp_path, optimisation=dict(critic_per_generator=1, batch=2), **few)
    resumed_run.check_resume(SCDMDTrainer, recipe, tmp_path, ("student", "critic", "ema"))


def test_from_drawn_pictures_to_a_video_of_one(tmp_path, capsys, monkeypatch):
    """The recipe of the Shapes world on a small student: precompute, distil, export, `salt generate --image`."""
    monkeypatch.setattr("train.distill.check_memory", lambda *_: None)  # takes seconds, and has tests of its own
    monkeypatch.chdir(tmp_path)
    small, parts = tiny_recipes.recipe(tmp_path), tiny_system.folder(tmp_path / "parts")
    overrides = [
        f"models.student={small.models.student}", f"models.teacher={small.models.teacher}",
        f"models.vae={parts / 'vae'}", "start.clips=3", "rollout.frames=4", "optimisation.updates=2",
        "optimisation.batch=2", "optimisation.micro_batch=1", "optimisation.critic_per_generator=1",
        "loss.align_block=1", "run.sample_every=0", "run.save_every=0", "run.tracker=none",
    ]  # fmt: skip
    assert main(["distill", "tiny_i2v", *overrides]) == 2
    assert "data.images: found no such folder 'runs/tiny_starts', `python -m train precompute tiny_i2v`" in (
        capsys.readouterr().err
    )
    assert main(["precompute", "tiny_i2v", *overrides]) == 0
    assert "runs/tiny_starts: 3 start images" in capsys.readouterr().out
    assert main(["distill", "tiny_i2v", *overrides]) == 0
    student = tmp_path / "runs" / "tiny_i2v" / "export" / "tiny_i2v.safetensors"
    picture = Image.new("RGB", (64, 64), "orange")
    picture.save("start.png")
    command = ["generate", "a red circle moving right", "--model", str(student), "--parts", str(parts)]
    assert cli.main([*command, "--image", "start.png", "--frames", "13", *SIZE, "-o", "clip.mp4"]) == 0
    assert read_video(tmp_path / "clip.mp4").shape[2] == 13
    pipe = SaltPipeline.from_single_file(student, parts=parts)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a red circle", image=picture, num_frames=13, height=64, width=64, output_type="latent").latents
    start = encode_video(pipe.vae, start_pixels(picture, (64, 64), 1))
    torch.testing.assert_close(made[:, :, :1], start)
    assert pipe.spec.independent_first_frame and made.shape[2] == 4


def test_pictures_that_have_no_effect_are_refused(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    assert main(["precompute", "tiny_i2v", "--images", str(tmp_path / "pictures")]) == 2
    assert "--images has no effect with data.prompts=shapes" in capsys.readouterr().err
    recipe = load_recipe("causal_forcing_i2v_salt")
    assert recipe.rollout.frames_per_block == 1 and replace(recipe.rollout, share={4: 1.0}) == (
        load_recipe("causal_forcing_frame").rollout
    )
