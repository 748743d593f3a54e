"""The stages before distillation: a teacher's trajectories, and the students trained on them."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salt.checkpoints import load_student
from salt.conditioning import Conditioning
from salt.schedule import euler
from tests.helpers import tiny_recipes
from train.config.recipe import Losses, Recipe, RecipeError
from train.config.validation import check_settings
from train.data.clip_dataset import ClipDataset
from train.data.trajectories import generate_clips
from train.methods.ode_regression import ODERegressionTrainer, trajectory_loss
from train.methods.teacher_forcing import TeacherForcingTrainer

CPU = torch.device("cpu")
COLOURS = ("red", "blue")


def stage_recipe(folder: Path, stage: str = "ode", teacher: str = "bidirectional", **start):
    clips = folder / f"clips_{teacher}"
    recipe = tiny_recipes.recipe(
        folder,
        rollout=dict(share={4: 1.0}),
        data=dict(clips=str(clips)),
        optimisation=dict(updates=30, batch=2, lr=3e-3, ema_start=1000),
        run=dict(out=str(folder / f"run_{stage}"), save_every=10),
    )
    history = "rollout" if teacher == "causal" and "history" not in start else start.get("history", "real")
    settings = dict(teacher_steps=8, guidance=2.0, clips=2) | start | dict(teacher=teacher, history=history)
    return replace(recipe, stage=stage, start=replace(recipe.start, **settings))


def losses(recipe):
    with (Path(recipe.run.out) / "losses.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == recipe.stage]


def test_no_folder_is_created_for_a_missing_teacher(tmp_path):
    recipe = stage_recipe(tmp_path)
    with pytest.raises(ValueError, match="models.teacher: found no such file 'nowhere'"):
        generate_clips(replace(recipe, models=replace(recipe.models, teacher="nowhere")), CPU)
    assert not Path(recipe.data.clips).exists()


@pytest.mark.parametrize("teacher", ["bidirectional", "causal"])
def test_states_lie_on_the_teachers_guided_ode(tmp_path, teacher):
    recipe = stage_recipe(tmp_path, teacher=teacher)
    assert generate_clips(recipe, CPU) == 2 and generate_clips(recipe, CPU) == 0
    clips = ClipDataset(recipe)
    latents, trajectory = clips(0, 16).latents, clips(0, 16).trajectory
    assert trajectory.shape == (4, 16, 6, 4, 4) and not torch.equal(trajectory[0], clips(1, 16).trajectory[0])
    model = load_student(recipe.models.teacher, dtype=torch.float32).eval()
    prompts = ODERegressionTrainer(recipe).prompts
    text, negative = (c.text for c in prompts.conditioning(clips.prompts[:1]))
    sigmas = recipe.schedule(8).sigmas
    block = 3 if teacher == "causal" else 6  # the first block of a causal teacher has no past: a clip of its own
    x = trajectory[:1, :, :block]
    with torch.no_grad():
        for i, sigma in enumerate(sigmas):
            if i % 2 == 0:
                torch.testing.assert_close(x[0], trajectory[i // 2, :, :block], atol=1e-4, rtol=1e-4)
            t = torch.tensor([1000 * sigma])
            cond, uncond = (model(x, t, c, return_dict=False)[0] for c in (text, negative))
            x = euler(x, cond + 2.0 * (cond - uncond), sigma, sigmas[i + 1] if i < 7 else 0.0)
    torch.testing.assert_close(x[0], latents[:, :block], atol=1e-4, rtol=1e-4)


def test_a_student_learns_trajectories_and_resumes(tmp_path):
    recipe = stage_recipe(tmp_path)
    generate_clips(recipe, CPU)
    trainer = ODERegressionTrainer(recipe)
    trainer.run()
    curve = losses(recipe)
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    again = replace(recipe, run=replace(recipe.run, out=str(tmp_path / "again")))
    for updates in (10, 30):
        ODERegressionTrainer(replace(again, optimisation=replace(again.optimisation, updates=updates))).run()
    assert losses(again) == curve
    path = trainer.export(tmp_path / "start.safetensors")
    assert torch.equal(
        load_student(path, dtype=torch.float32).proj_out.weight,
        trainer.averaged_state()["proj_out.weight"].bfloat16().float(),
    )


def test_teacher_forcing_needs_no_trajectory(tmp_path):
    recipe = stage_recipe(tmp_path, "tf", history_noise=0.2, prompt_dropout=0.5)
    Path(recipe.data.clips).mkdir()
    for i in range(3):
        torch.manual_seed(i)
        save_file(
            {"latents": torch.randn(16, 6, 4, 4) * 0.1}, Path(recipe.data.clips) / f"{i:06d}.safetensors",
            {"prompt": "a red circle"},
        )  # fmt: skip
    TeacherForcingTrainer(recipe).run()
    curve = losses(recipe)
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
    with pytest.raises(RecipeError, match=r"found trajectory None in .*0000..safetensors, expected \(4, 16, 6, 4, 4\)"):
        ODERegressionTrainer(replace(recipe, stage="ode", run=replace(recipe.run, out=str(tmp_path / "o")))).run()


def test_clips_of_the_wrong_shape_are_named(tmp_path):
    recipe = stage_recipe(tmp_path, "tf")
    folder = Path(recipe.data.clips)
    folder.mkdir()
    with pytest.raises(RecipeError, match="found nothing in .*, expected NNNNNN.safetensors"):
        TeacherForcingTrainer(recipe)
    save_file({"latents": torch.zeros(16, 3, 4, 4)}, folder / "000000.safetensors", {"prompt": "a red circle"})
    with pytest.raises(RecipeError, match=r"found latents \(16, 3, 4, 4\) in .*, expected \(16, 6, 4, 4\)"):
        TeacherForcingTrainer(recipe).run()
    save_file({"latents": torch.zeros(16, 6, 4, 4)}, folder / "000001.safetensors")
    with pytest.raises(RecipeError, match="found no prompt in the metadata of .*000001.safetensors"):
        TeacherForcingTrainer(recipe)


def test_missing_clips_are_generated_again_the_same(tmp_path):
    recipe = stage_recipe(tmp_path)
    generate_clips(recipe, CPU)
    second = Path(recipe.data.clips) / "000001.safetensors"
    before = load_file(second)["latents"]
    second.unlink()
    assert generate_clips(recipe, CPU) == 1
    torch.testing.assert_close(load_file(second)["latents"], before, atol=1e-4, rtol=1e-4)


def with_history(recipe: Recipe, folder: Path, count: int) -> Recipe:
    folder.mkdir()
    for i in range(count):
        latents = torch.randn(16, 6, 4, 4, generator=torch.Generator().manual_seed(i))
        save_file({"latents": latents}, folder / f"{i:06d}.safetensors", {"prompt": f"a {COLOURS[i]} circle"})
    return replace(recipe, data=replace(recipe.data, history=str(folder)))


def test_a_causal_teachers_trajectories_lie_behind_real_clips(tmp_path):
    """As Causal Forcing's release: both blocks at once, the second behind the first of the real clip."""
    recipe = with_history(stage_recipe(tmp_path, teacher="causal", clips=5, history="real"), tmp_path / "real", 2)
    assert generate_clips(recipe, CPU) == 2 and generate_clips(recipe, CPU) == 0  # as many as there are real clips
    clips = ClipDataset(recipe)
    assert clips.prompts == ["a red circle", "a blue circle"]
    clip = clips(1, 16)
    assert torch.equal(clip.history, load_file(tmp_path / "real" / "000001.safetensors")["latents"])
    model = load_student(recipe.models.teacher, dtype=torch.float32).eval()
    text, negative = (c.text for c in ODERegressionTrainer(recipe).prompts.conditioning(clips.prompts[1:]))
    sigmas, x = recipe.schedule(8).sigmas, clip.trajectory[None, 0]
    mask = model.block_causal([3, 3], 4, 4, clean_context=True, policy=recipe.policy)
    with torch.no_grad():
        for i, sigma in enumerate(sigmas):
            if i % 2 == 0:
                torch.testing.assert_close(x[0], clip.trajectory[i // 2], atol=1e-4, rtol=1e-4)
            t = torch.cat([torch.zeros(1, 6), torch.full((1, 6), 1000 * sigma)], 1)
            both = torch.cat([clip.history[None], x], 2)
            cond, uncond = (model(both, t, c, attention_context=mask).sample[:, :, 6:] for c in (text, negative))
            x = euler(x, cond + 2.0 * (cond - uncond), sigma, sigmas[i + 1] if i < 7 else 0.0)
    torch.testing.assert_close(x[0], clip.latents, atol=1e-4, rtol=1e-4)


def test_the_students_past_is_the_real_clip_and_its_step_one_for_all_blocks(tmp_path):
    recipe = stage_recipe(tmp_path, teacher="causal", history="real", step_for="clip")
    seen = []

    class Model:
        def __call__(self, x, t, text, image=None, /, *, return_dict, attention_context):
            seen.append((x[:, :, :6], t))
            return (torch.zeros_like(x),)

        def block_causal(self, *_, **__):
            return None

    latents, history = torch.zeros(2, 16, 6, 4, 4), torch.ones(2, 16, 6, 4, 4)
    text = Conditioning(torch.zeros(2, 3, 8))
    for update in range(8):
        trajectory_loss(Model(), latents, torch.zeros(2, 4, 16, 6, 4, 4), history, text, range(2), recipe, update)
    assert all(torch.equal(past, history) for past, _ in seen)
    steps = torch.cat([t[:, 6:] for _, t in seen])
    assert bool((steps == steps[:, :1]).all()) and len(steps[:, 0].unique()) == 4
    other = replace(recipe, start=replace(recipe.start, step_for="block"))
    trajectory_loss(Model(), latents, torch.zeros(2, 4, 16, 6, 4, 4), history, text, range(2), other, 1)
    assert len(seen[-1][1][:, 6:].unique()) > 1


@pytest.mark.parametrize(
    "data, start, complaint",
    [
        ({}, dict(teacher="causal", history="real"), "data.history: found none, expected the folder of clean clips"),
        (dict(history="real"), dict(), "data.history: found a folder of clean clips, which only trajectories with"),
        ({}, dict(history="rollout"), "start.history='rollout' has no effect without a causal teacher"),
    ],
)
def test_histories_that_cannot_be_are_refused(tmp_path, data, start, complaint):
    recipe = stage_recipe(tmp_path, **start)
    recipe = replace(recipe, loss=Losses(), data=replace(recipe.data, **data))
    with pytest.raises(RecipeError, match=complaint):
        check_settings(recipe)
        generate_clips(recipe, CPU)
