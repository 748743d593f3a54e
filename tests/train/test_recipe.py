"""The command that trains salt-tiny: its result loads with the engine, and missing stages are named; ShapeBench."""

import csv
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from salt.checkpoints import read_checkpoint, save_diffusers
from salt.conditioning import Conditioning
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.models.word_embedder import WordEmbedder
from salt.pipeline import SaltPipeline
from salt.spec import StudentSpec
from train.__main__ import parser
from train.data.trajectories import trajectories
from train.evaluation.sampling import channels_last, teacher_clips
from train.evaluation.shapebench import CLIPS_PER_BATCH, PROMPTS, evaluate, score_ends, score_model, split_rows
from train.experiments.tiny import build
from train.experiments.tiny.ode_regression import start_recipe
from train.experiments.tiny.teacher import new_transformer
from train.experiments.tiny.vae import new_vae
from train.shapes.world import HELD_OUT_SCENES, TRAIN_SCENES, render


def test_the_48_prompts_are_24_held_out_and_24_trained_ones():
    assert len(set(PROMPTS)) == 48
    assert set(HELD_OUT_SCENES) < set(PROMPTS) and len(set(PROMPTS) & set(TRAIN_SCENES)) == 24


def test_an_untrained_student_is_scored_and_fails():
    vae = channels_last(new_vae()).requires_grad_(False)
    scores = score_model(new_transformer(0), vae, steps=2, prompts=PROMPTS[:2], frames=3)
    assert len(scores) == 2 and not any(score.passed for score in scores)
    assert list(split_rows("mine", scores)) == ["mine", "mine, held out"]


def test_evaluate_writes_its_table_and_every_clip(tmp_path, monkeypatch):
    new_vae().save_pretrained(tmp_path / "vae")
    new_transformer(0).save_pretrained(tmp_path / "student")

    def truth(model, vae, steps, **_):
        from train.shapes.bench import score_clip

        clips = render(PROMPTS[:2], 9, torch.Generator().manual_seed(0))
        return [score_clip(clip, scene) for clip, scene in zip(clips.pixels, clips.scenes, strict=True)]

    monkeypatch.setattr("train.evaluation.shapebench.score_model", truth)
    table = evaluate(tmp_path / "student", tmp_path / "vae", tmp_path / "out", steps=(4,))
    assert "| student, 4 steps | 100 %" in table and (tmp_path / "out.md").read_text() == table + "\n"
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["student, 4 steps"]["clips"][0]["passed"] is True


def test_long_clips_are_scored_at_both_ends_over_equal_lengths(monkeypatch):
    scored = []
    numbered = torch.arange(30.0).view(1, 1, 30, 1, 1)  # each latent frame holds its index
    monkeypatch.setattr("train.evaluation.shapebench.student_clips", lambda *_: numbered)
    monkeypatch.setattr(
        "train.evaluation.shapebench.decode_latents", lambda _, z: z.repeat_interleave(4, 2)[:, :, 3:]
    )  # 4F - 3 pixel frames, one of the first latent frame
    monkeypatch.setattr(
        "train.evaluation.shapebench.score_clip", lambda clip, _: scored.append(clip.flatten().tolist())
    )
    score_ends(new_transformer(0), None, 2, prompts=PROMPTS[:1], frames=30)
    first, last = scored
    assert len(first) == len(last) == 81
    assert (first[0], first[-1], last[0], last[-1]) == (0, 20, 9, 29)
    with pytest.raises(ValueError, match="frames: found 22"):
        evaluate(None, None, None, frames=22)


def guided_euler(teacher, text, shape, seed):
    """Two Euler steps with guidance 2, written out, prompt and empty prompt in one forward."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    sigmas = [1.0, 5 / 6, 0.0]  # steps 1000 and 500 under shift 5, and the end
    for sigma, following in pairwise(sigmas):
        both = torch.cat([text, torch.zeros_like(text)])
        flow, empty = teacher(x.repeat(2, 1, 1, 1, 1), torch.full((4,), 1000 * sigma), both, return_dict=False)[
            0
        ].chunk(2)
        x = x + (following - sigma) * (empty + 2.0 * (flow - empty))
    return x


@torch.no_grad()
def test_a_teacher_samples_whole_clips_or_the_trajectories_of_the_initial_student(tmp_path):
    scenes = PROMPTS[:2]
    text = WordEmbedder().encode([scene.caption for scene in scenes])
    teacher = new_transformer(0)
    whole = teacher_clips(teacher, text, 2, 3, 7, StudentSpec(0))
    assert torch.allclose(whole, guided_euler(teacher, text, (2, 16, 3, 8, 8), seed=7), atol=1e-5)
    save_diffusers(teacher, tmp_path / "teacher")
    recipe = start_recipe(tmp_path / "teacher", tmp_path, 2)
    recipe = replace(recipe, rollout=replace(recipe.rollout, frames=6), start=replace(recipe.start, teacher_steps=4))
    negative = Conditioning(WordEmbedder().encode(["", ""]))
    clips, _ = trajectories(teacher, Conditioning(text), negative, recipe, [7, 8])
    blocks = teacher_clips(teacher, text, 4, 6, 7, StudentSpec(3))
    assert torch.allclose(blocks, clips, atol=1e-3)  # a guidance of 2.4 is 7e-3 away


def test_evaluate_samples_a_teacher_by_its_spec_once_per_seed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("train.evaluation.shapebench.score_model", lambda *_, **options: calls.append(options) or [])
    monkeypatch.setattr("train.evaluation.shapebench.split_rows", lambda *_: {})
    new_vae().save_pretrained(tmp_path / "vae")
    for spec in (StudentSpec(0), StudentSpec(3, shift=2.0)):
        save_diffusers(new_transformer(0), tmp_path / "teacher", spec=spec)
        evaluate(None, tmp_path / "vae", tmp_path / "out", tmp_path / "teacher", seeds=(7, 9))
        firsts = range(0, len(PROMPTS), CLIPS_PER_BATCH)
        assert [call.pop("seed") for call in calls] == [seed + first for seed in (7, 9) for first in firsts]
        assert [scene for call in calls for scene in call.pop("prompts")] == [*PROMPTS, *PROMPTS]
        assert calls == [{"teacher": True, "spec": spec}] * len(calls)
        calls.clear()


def test_a_stage_names_the_missing_stage_before_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="--stage vae"):
        build.run_stage("teacher", tmp_path, build.BUDGETS["quick"])


def test_commands_parse():
    args = parser().parse_args(["tiny", "--stage", "vae", "--budget", "quick", "--device", "cpu"])
    assert args.stage == "vae" and args.run.__name__ == "tiny"
    assert parser().parse_args(["evaluate", "somewhere", "--steps", "4"]).steps == [4]


@pytest.mark.slow
def test_the_whole_recipe_runs_and_ships(tmp_path):
    args = parser().parse_args(
        ["tiny", "--budget", "quick", "--out", str(tmp_path), "--device", "cpu", "--workers", "1"]
    )
    args.run(args)
    shipped = tmp_path / "tiny"
    student = SaltTransformer3DModel.from_pretrained(shipped / "transformer", torch_dtype=torch.float32)
    assert sum(p.numel() for p in student.parameters()) < 5e6
    assert json.loads((shipped / "model_index.json").read_text())["words"]["dim"] == 4096
    assert (shipped / "vae" / "config.json").exists() and (shipped / "start.png").exists()
    for teacher in ("tiny_teacher", "tiny_forced"):
        assert (tmp_path / teacher / "diffusion_pytorch_model.safetensors").stat().st_size < 4.5e6
    for stage in ("vae", "teacher", "forcing"):
        with (tmp_path / stage / "curve.csv").open() as file:
            losses = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "loss"]
        assert losses[-1] < 0.9 * losses[0], stage
    file = tmp_path / "salt_tiny.safetensors"
    assert read_checkpoint(file).spec.frames_per_block == 3
    pipe = SaltPipeline.from_single_file(file, parts=shipped)
    assert torch.equal(pipe.transformer.proj_out.weight.float(), student.proj_out.weight)
    clip = pipe(PROMPTS[0].caption, num_frames=9, num_inference_steps=2, output_type="latent").latents
    assert clip.isfinite().all() and clip.shape == (1, 16, 3, 8, 8)
