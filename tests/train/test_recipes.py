"""Recipes: the released numbers; errors of one line, raised before any weight is read."""

import re
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import torch
from safetensors.torch import save_file
from torch.torch_version import TorchVersion

from salt.checkpoints import save_diffusers
from salt.errors import InputError
from tests.helpers import tiny_recipes
from tests.train.released_numbers import ALIGNED, COMMON, FRAME, OURS, RELEASED
from train.__main__ import main
from train.config.loader import RECIPES, load_recipe, recipe_names, recipe_summary
from train.config.model_configs import backbones, check_backbones, config_of
from train.config.recipe import Recipe, RecipeError
from train.config.validation import check_recipe, check_settings
from train.distributed.launch import check_mode
from train.memory_estimate.estimate import usable_counts

NAMES = sorted(p.stem for p in RECIPES.glob("*.yaml"))


def test_every_recipe_fits_its_backbones():
    assert len(NAMES) >= 24
    for name in NAMES:
        recipe = load_recipe(name)
        check_backbones(recipe)
        assert recipe.name == name and recipe.run.out == f"runs/{name}"


def flat(recipe):
    return {f"{section}.{k}": v for section, x in asdict(recipe).items() if isinstance(x, dict) for k, v in x.items()}


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_recipes_have_the_released_numbers(name):
    settings = flat(load_recipe(name))
    assert {key: settings[key] for key in RELEASED[name]} == RELEASED[name]


def test_every_number_of_a_wan_recipe_is_released_or_said_to_be_ours():
    defaults = flat(Recipe())
    for name in NAMES:
        if name.startswith("tiny"):
            continue
        settings, released = flat(load_recipe(name)), RELEASED.get(name, {})
        ours = OURS["*"] | OURS.get(name, set())
        for section in ("loss", "rollout", "optimisation", "start"):
            changed = {k for k, v in settings.items() if k.startswith(f"{section}.") and v != defaults[k]}
            known = released if name in RELEASED else COMMON | FRAME | ALIGNED
            start = {"start.clips"} if settings["start.clips"] else set()
            assert changed <= set(known) | ours | start, name
    shared = {k for k in defaults if k.partition(".")[0] in ("loss", "rollout")} - {"rollout.kind"}
    assert shared <= set(COMMON) | OURS["*"], "defaults that the table has no source for"


def test_comments_of_recipes_name_sources():
    """A recipe that states numbers says in its comment where they are from, or that they are ours."""
    for path in RECIPES.glob("[!t]*.yaml"):
        lines = path.read_text(encoding="utf-8").split("\n")
        comment = " ".join(line for line in lines if line.startswith("#"))
        numbers = [line for line in lines if re.search(r"[ {](lr|updates|align_start|clips|share|semigroup): ", line)]
        assert not numbers or re.search(r"release|Release|paper|ours|Salt's|README|configs/", comment), path.name


def test_all_wan_recipes_share_negative_prompt_and_teacher():
    for name in ("self_forcing", "causal_forcing_sc", "longlive_salt"):
        recipe = load_recipe(name)
        assert recipe.data.negative.startswith("色调艳丽") and recipe.models.teacher.endswith("14B-Diffusers")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "models.teacher cannot be used ("),
        ("another model", "models.teacher cannot be used ("),
        (
            "another text encoder",
            "models: found text_dim {'student': 4096, 'critic': 4096, 'teacher': 64}, expected",
        ),
        ("another patch", "models: found patch_size {"),
        ("another VAE", "models: found channels (in, out) {"),
    ],
)
def test_a_teacher_of_another_architecture_is_named(tmp_path, kind, said):
    config = {
        "another text encoder": dict(text_dim=64),
        "another patch": dict(patch_size=(1, 1, 1)),
        "another VAE": dict(in_channels=48, out_channels=48),
    }
    teacher = tmp_path / "other"
    if kind == "text":
        teacher.write_text("a fast red circle")
    elif kind == "another model":
        save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, tmp_path / "other.safetensors")
        teacher = tmp_path / "other.safetensors"
    else:
        save_diffusers(tiny_recipes.model(**config[kind]), teacher)
    with pytest.raises(RecipeError, match=f"^{re.escape(said)}") as error:
        check_backbones(tiny_recipes.recipe(tmp_path, models=dict(teacher=str(teacher))))
    assert len(str(error.value)) <= 400


def test_backbones_are_known_by_name_or_read(tmp_path):
    sizes = {k: (c["num_layers"], c["in_channels"]) for k, c in backbones(load_recipe("i2v_sc")).items()}
    assert sizes == {"student": (40, 36), "critic": (40, 36), "teacher": (40, 36)}
    assert backbones(load_recipe("self_forcing"))["student"]["num_layers"] == 30
    tiny_recipes.recipe(tmp_path)
    assert config_of(str(tmp_path / "student"))["num_layers"] == 2
    with pytest.raises(RecipeError, match="contains no size"):
        config_of("checkpoints/mystery.pt")


def test_overrides_and_bases(tmp_path):
    recipe = load_recipe("tiny_salt", ["optimisation.lr=1e-5", "rollout.share={8: 1.0}", "optimisation.precision=no"])
    assert recipe.optimisation.lr == 1e-5 and recipe.rollout.share == {8: 1.0}
    (tmp_path / "mine.yaml").write_text("base: other\nloss: {semigroup: 0.1}\n")
    (tmp_path / "other.yaml").write_text("loss: {guidance: 2}\nrun: {out: here}\n")
    mine = load_recipe(tmp_path / "mine.yaml")
    assert (mine.loss.semigroup, mine.loss.guidance, mine.run.out, mine.name) == (0.1, 2.0, "here", "mine")
    for name in ("ours", "tiny_salt"):  # and under the name that it has among ours
        (tmp_path / f"{name}.yaml").write_text("base: tiny_salt\nloss: {guidance: 2}\n")
        assert load_recipe(tmp_path / f"{name}.yaml").loss == replace(load_recipe("tiny_salt").loss, guidance=2.0)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("loss: {gudance: 3}", "loss.gudance is no known key, did you mean guidance"),
        ("loss: {guidance: much}", "loss.guidance: found 'much', expected a number"),
        ("loss: [1]", "loss: found .*, expected a section"),
        ("rollout: {share: {8: half}}", "share: found 'half', expected a number"),
        ("base: nobody", "base: found 'nobody', expected another recipe"),
        ("base: it", "base: found 'it', expected another recipe"),
        ("[1, 2]", "found list, expected keys and values"),
        ("a: [", "recipe is not valid YAML"),
    ],
)
def test_the_error_of_a_bad_file_is_one_line(tmp_path, text, complaint):
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(RecipeError, match=complaint) as error:
        load_recipe(tmp_path / "it.yaml")
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_suggests_near_ones(tmp_path):
    with pytest.raises(RecipeError, match="recipe: found no file 'no_such', expected a YAML file, or a name that"):
        load_recipe("no_such")
    with pytest.raises(RecipeError, match="no file 'self_forcng_salt.yaml', did you mean self_forcing_salt or "):
        load_recipe("self_forcng_salt.yaml")
    with pytest.raises(RecipeError, match="recipe: found a folder"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="no file 'TINY_SC', did you mean tiny_sc"):
        load_recipe("TINY_SC")
    for override in ("faster", "=3"):
        with pytest.raises(RecipeError, match="is not of the form key=value"):
            load_recipe("tiny", [override])


def test_settings_that_cannot_work_are_errors(tmp_path):
    good = tiny_recipes.recipe(tmp_path)
    check_recipe(good)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")

    def prompts(name):
        return dict(data=dict(prompts=str(tmp_path / name)))

    wrong = {
        "models.student: found no such file": dict(models=dict(student="nowhere.pt")),
        r"data.prompts cannot be used \(.*none.txt: found no such file": prompts("none.txt"),
        r"data.prompts cannot be used \(.*empty.txt: found no prompt": prompts("empty.txt"),
        r"data.prompts cannot be used \(.*bytes.txt: not UTF-8 text": prompts("bytes.txt"),
        "data.embeddings: found no such folder": dict(data=dict(embeddings="nowhere")),
        "models.text: found no such folder": dict(models=dict(text="nowhere")),
        "rollout.share: found": dict(rollout=dict(share={8: 0.5})),
        "loss.semigroup=0.2 needs 8 in rollout.share": dict(rollout=dict(share={4: 1.0}), loss=dict(align="none")),
        "loss.align is not supported by bidirectional students": dict(rollout=dict(kind="bidirectional")),
        "rollout.first_steps=2 expected 4 or 8, more than": dict(
            rollout=dict(first_steps=2, share={2: 1.0}), loss=dict(semigroup=0.0, align="none")
        ),
        "rollout.first_steps=8 is not supported beside loss.align": dict(
            rollout=dict(first_steps=8, share={4: 0.5, 2: 0.5}), loss=dict(semigroup=0.0)
        ),
        "rollout.first_steps=4 has no effect without rollouts": dict(
            rollout=dict(first_steps=4, share={2: 1.0}, kind="bidirectional"), loss=dict(semigroup=0.0, align="none")
        ),
        "rollout.frames, rollout.window: found 7": dict(rollout=dict(frames=7)),
        "rollout.window: found 9, expected at most": dict(rollout=dict(window=9)),
        r"rollout.memory cannot be used \(window: found 2, expected at least 3": dict(rollout=dict(memory="window:2")),
        "found rebuild:3, expected one that training writes": dict(rollout=dict(memory="rebuild:3")),
        "optimisation.batch: found 3, expected a multiple": dict(optimisation=dict(batch=3)),
        "optimisation.batch: found 0, expected 1 or more": dict(optimisation=dict(batch=0)),
        "optimisation.micro_batch: found 0, expected 1 or more": dict(optimisation=dict(micro_batch=0)),
        "optimisation.updates: found 0, expected 1 or more": dict(optimisation=dict(updates=0)),
        "rollout.frames_per_block: found 0, expected 1 or more": dict(rollout=dict(frames_per_block=0)),
        "optimisation.lr: found -1.0, expected 0 to 1": dict(optimisation=dict(lr=-1.0)),
        "optimisation.clip: found nan, expected 0 or more": dict(optimisation=dict(clip=float("nan"))),
        "data.images: found nothing in": dict(data=dict(images=str(tmp_path / "nothing"))),
        "run.keep: found -1, expected 1 or more": dict(run=dict(keep=-1)),
        "loss.guidance_max: found 1": dict(loss=dict(guidance_max=1.0)),
        "run.tracker: found nothing_such": dict(run=dict(tracker="nothing_such")),
    }
    for complaint, sections in wrong.items():
        with pytest.raises(RecipeError, match=complaint):
            check_recipe(tiny_recipes.recipe(tmp_path, **sections))
    with pytest.raises(RecipeError, match="2 x 3 processes"):
        check_recipe(good, processes=3)


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("name=../x", r"name: found '../x', expected a name for files"),
        ("optimisation.lr=nan", "optimisation.lr: found nan, expected 0 to 1"),
        ("optimisation.betas=[0.9,1.0]", "optimisation.betas: found 1.0, expected 0 to 0.999999"),
        ("optimisation.ema=1.5", "optimisation.ema: found 1.5, expected 0 to 1"),
        ("optimisation.clip=inf", r"optimisation.clip: found inf, expected 0 to 1e\+09"),
        ("rollout.shift=0", "rollout.shift: found 0.0, expected 0.01 to 100"),
        ("rollout.share={4: 1.5}", "rollout.share: found 1.5, expected 0 to 1"),
        ("loss.align_weight=-0.1", "loss.align_weight: found -0.1, expected 0 to 1000"),
        ("start.prompt_dropout=2", "start.prompt_dropout: found 2.0, expected 0 to 1"),
        ("run.diverged=0", "run.diverged: found 0.0, expected 1 or more"),
        ("run.sample_steps=[4,0]", "run.sample_steps: found 0, expected 1 to 1000"),
    ],
)
def test_every_number_has_a_range(override, complaint):
    with pytest.raises(RecipeError, match=f"tiny.yaml: {complaint}"):
        load_recipe("tiny", [override])


def bare_numbers(hint) -> bool:
    if get_origin(hint) is Annotated:
        return False
    return hint in (int, float) or any(bare_numbers(part) for part in get_args(hint))


def test_no_number_of_a_recipe_is_without_a_range():
    sections = [hint for hint in get_type_hints(Recipe).values() if is_dataclass(hint)]
    hints = [(s, name, h) for s in sections for name, h in get_type_hints(s, include_extras=True).items()]
    without = {f"{section.__name__}.{name}" for section, name, hint in hints if bare_numbers(hint)}
    assert without == {"Rollouts.share"}, "whose step counts `check_settings` compares with the known ones"


def test_the_recipes_are_listed_in_one_line_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == recipe_names() and len(lines) > 30
    assert all(summary and gpus for summary, gpus in map(recipe_summary, recipe_names()))
    (tiny,) = [line for line in lines if line.startswith("tiny_sc ")]
    assert "none, a CPU does" in tiny


def test_the_batch_divides_over_the_gpus_that_a_recipe_names():
    for name in recipe_names():
        for part in recipe_summary(name)[1].split(", or "):
            if named := re.match(r"(\d+)\b(?:.* with (\S+=\d+))?", part):
                recipe = load_recipe(name, [named[2]] if named[2] else [])
                assert usable_counts(recipe, [int(named[1])]), f"{name}: {part}"


def test_settings_that_fsdp_does_not_support_are_errors(monkeypatch):
    recipe = load_recipe("tiny")
    monkeypatch.setattr("torch.__version__", TorchVersion("2.8.0+cpu"))
    check_mode(recipe, "fsdp")
    monkeypatch.setattr("torch.__version__", TorchVersion("2.7.1+cu126"))
    check_mode(recipe, "ddp")
    with pytest.raises(InputError, match=r"mode: found fsdp with torch 2.7.1\+cu126, expected torch 2.8 or newer"):
        check_mode(recipe, "fsdp")


def test_shards_need_sharded_models_and_divide_the_processes(monkeypatch):
    recipe = load_recipe("tiny", ["optimisation.shard=4"])
    with pytest.raises(RecipeError, match="optimisation.shard=4 has no effect without --mode fsdp"):
        check_mode(recipe, "ddp")
    monkeypatch.setattr("train.distributed.launch.process_count", lambda: 6)
    with pytest.raises(RecipeError, match="optimisation.shard: found 4, expected a divisor of the 6 processes"):
        check_mode(recipe, "fsdp")
    monkeypatch.setattr("train.distributed.launch.process_count", lambda: 8)
    monkeypatch.setattr("torch.__version__", TorchVersion("2.8.0+cpu"))
    check_mode(recipe, "fsdp")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("loss", "semigroup", 0.2), ("loss", "align", "paper"), ("models", "lora_critic", True)],
)
def test_what_only_distillation_has_is_an_error_elsewhere(tmp_path, section, name, value):
    recipe = tiny_recipes.recipe(tmp_path, stage="tf", **{section: {name: value}})
    with pytest.raises(RecipeError, match=f"{section}.{name}={value!r} has no effect in the stage tf"):
        check_settings(recipe)


def test_backbones_that_do_not_fit_together_are_errors(tmp_path):
    good = tiny_recipes.recipe(tmp_path)
    wrong = {
        "loss.align_block: found 2, expected 0 to 1": dict(loss=dict(align_block=2)),
        "rollout.independent_first_frame: found false, expected true with data.images": dict(
            data=dict(images=str(tmp_path))
        ),
        "data.images is not supported by bidirectional text-to-video students": dict(
            data=dict(images=str(tmp_path)), rollout=dict(kind="bidirectional")
        ),
        "data.images is not supported with loss on a window": dict(
            data=dict(images=str(tmp_path)), rollout=dict(frames=9, window=6, long_tuning="end")
        ),
        "data.images has no effect in the stage tf": dict(data=dict(images=str(tmp_path)), stage="tf"),
        r"rollout.height, rollout.width: found 5 and 4, expected multiples of the patch 2x2": dict(
            rollout=dict(height=5)
        ),
    }
    for complaint, sections in wrong.items():
        with pytest.raises(RecipeError, match=complaint):
            check_backbones(tiny_recipes.recipe(tmp_path, **sections))
    with pytest.raises(RecipeError, match=r"models: found channels .*'teacher': \(36, 16\)"):
        check_backbones(replace(good, models=replace(good.models, teacher="Wan2.1-I2V-14B")))
    with pytest.raises(RecipeError, match="data.images: found none"):
        check_backbones(load_recipe("i2v", ["data.images="]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: &a [x, x]\nname: [*a, *a]", "found the alias \\*a"),
        ("[" * 20_000, "nested too deeply"),
        (f"optimisation: {{updates: {'9' * 5000}}}", "not valid YAML"),
    ],
)
def test_yaml_that_stands_for_more_than_it_says(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "r.yaml" in str(caught.value) and len(str(caught.value)) < 400
