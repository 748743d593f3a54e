"""`python -m train distill`: from a recipe to a student that loads, on tiny models and on files laid out as Wan's."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from salt.checkpoints import load_student, save_diffusers
from salt.errors import InputError
from salt.io.video import read_video
from salt.pipeline import SaltPipeline
from tests.helpers import tiny_recipes, tiny_system
from train import export
from train.__main__ import main
from train.config.loader import RECIPES, load_recipe
from train.config.model_configs import backbones
from train.config.recipe import RecipeError
from train.config.validation import check_settings
from train.distill import dry_run, resolve_mode, save_recipe
from train.dry_run import dry_run_recipe, with_every_loss

ROOT = Path(__file__).parents[2]
# One of each kind; the others, which are variations of these, are marked slow.
FAST_RECIPES = ("self_forcing_salt", "i2v_sc", "relative_salt", "longlive_streaming", "causal_forcing_ode", "tiny_tf")
NAMES = sorted(p.stem for p in RECIPES.glob("*.yaml"))


def run_dry(name):
    line, *missing = dry_run(load_recipe(name, ["optimisation.critic_per_generator=1"]), "single")
    recipe = load_recipe(name)
    assert line.startswith(f"dry run of {name} ({recipe.stage}, single): 2 updates")
    losses = [recipe.stage] if recipe.stage != "distill" else ["critic", "dmd"]
    if recipe.stage == "distill":
        losses += ["semigroup"] if recipe.loss.semigroup else []
        losses += ["align"] if recipe.loss.align != "none" else []
        losses += ["adversarial", "discriminator"] if recipe.loss.adversarial else []
        losses += ["reward", "reward_weight"] if recipe.loss.reward else []
    student = backbones(recipe)["student"]
    from_picture = recipe.data.images and student["in_channels"] == student["out_channels"]
    if recipe.run.sample_every and recipe.rollout.rule == "wan" and not from_picture:
        losses += ["defect, euler", "defect, sampler"]
    for loss in losses:
        assert f" {loss} " in line, (loss, line)
    return missing


@pytest.mark.parametrize("name", FAST_RECIPES)
def test_dry_run_covers_everything(name):
    missing = run_dry(name)
    assert any("models.student: found no such file" in line for line in missing) == (name != "tiny_tf")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FAST_RECIPES)))
def test_dry_run_of_every_other_recipe(name):
    run_dry(name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_dry_run_in_two_processes(mode):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "-m", "train", "distill", "tiny_salt", "--dry-run", "--mode", mode]  # fmt: skip
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("dry run of tiny_salt") == 1 and f"(distill, {mode})" in run.stdout


def test_a_dry_run_without_all_losses_is_an_error():
    recipe = load_recipe("self_forcing_salt", ["rollout.share={4: 1.0}"])
    with pytest.raises(RuntimeError, match="no seed covers every loss"):
        with_every_loss(recipe)


def test_a_dry_run_of_several_processes_is_in_a_folder_that_all_nodes_share(tmp_path, monkeypatch):
    def stop(recipe, folder, processes):
        raise RuntimeError(str(folder))

    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("process_state", "broadcast_object_list"):
        monkeypatch.setattr(f"train.distill.{name}", lambda *_: None)
    monkeypatch.setattr("train.distill.dry_run_recipe", stop)
    with pytest.raises(RuntimeError) as error:
        dry_run(tiny_recipes.recipe(tmp_path, run=dict(out=str(tmp_path / "shared" / "run"))), "ddp")
    assert Path(str(error.value)).parent == tmp_path / "shared"


@pytest.mark.parametrize("frames, block, window", [(61, 3, 0), (61, 3, 33), (61, 3, 61), (31, 3, 0), (81, 40, 0)])
def test_a_dry_run_shortens_clips_with_an_independent_first_frame(tmp_path, frames, block, window):
    rollout = dict(frames=frames, frames_per_block=block, window=window, independent_first_frame=True)
    recipe = tiny_recipes.recipe(tmp_path, rollout=rollout, loss=dict(align="none"))
    check_settings(recipe)
    small = dry_run_recipe(recipe, tmp_path / "models")
    check_settings(small)
    assert small.rollout.window <= small.rollout.frames <= frames
    assert small.streams == recipe.streams == (window == 33)


def wan_i2v(folder: Path) -> Path:
    """A folder laid out as Wan 2.1 I2V's, of tiny random models."""
    tiny_system.umt5(folder)
    tiny_system.vae().save_pretrained(folder / "vae")
    tiny_system.image_encoder(folder)
    save_diffusers(
        tiny_recipes.model(3, in_channels=36, text_dim=32, image_dim=48, added_kv_proj_dim=32), folder / "transformer"
    )
    return folder


def placed(folder: Path, **names: str) -> dict[str, str]:
    return {key: str(folder / name) for key, name in names.items()}


def recipe_file(folder: Path, **sections) -> Path:
    base = {
        "optimisation": dict(batch=2, micro_batch=1, updates=2, critic_per_generator=1, precision="no", ema_start=1),
        "run": dict(out=str(folder / "run"), save_every=1, sample_every=1, sample_prompts=2, tracker="tensorboard"),
    }
    values = {k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in {**base, **sections}.items()}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_from_prompts_and_pictures_to_an_image_to_video_student(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.distill.check_memory", lambda *_: None)  # takes seconds, and has tests of its own
    wan = wan_i2v(tmp_path / "wan")
    (tmp_path / "prompts.txt").write_text("a red circle\na circle moving right\n")
    (tmp_path / "pictures").mkdir()
    for i, name in enumerate(("0.png", "01.jpg")):
        iio.imwrite(tmp_path / "pictures" / name, np.full((24, 40, 3), 80 * i, np.uint8))
    scale = 8
    path = recipe_file(
        tmp_path,
        models=placed(wan, student="transformer", teacher="transformer", text="", vae="vae"),
        data=placed(tmp_path, prompts="prompts.txt", embeddings="embeddings", images="starts") | {"negative": "moving"},
        rollout=dict(kind="bidirectional", frames=3, height=4, width=6, share={8: 1.0}),
        loss=dict(semigroup=0.2),
    )  # fmt: skip
    assert main(["distill", str(path)]) == 2
    assert "data.embeddings: found no such folder" in capsys.readouterr().err
    assert main(["precompute", str(path), "--images", str(tmp_path / "pictures")]) == 0
    assert len(list((tmp_path / "embeddings").iterdir())) == 3
    start = load_file(tmp_path / "starts" / "000001.safetensors")
    assert start["channels"].shape == (20, 3, 4, 6) and start["image"].shape == (5, 48)
    assert start["channels"][:4, 0].min() == 1 and start["channels"][:4, 1:].max() == 0
    assert main(["distill", str(path)]) == 0
    out = tmp_path / "run"
    assert (out / "losses.png").stat().st_size > 1000 and list((out / "logs").rglob("events*"))
    grid = read_video(out / "samples" / "000002.mp4")
    assert grid.shape[2:] == (9, 2 * 4 * scale + 2, 2 * 6 * scale + 2)
    pipe = SaltPipeline.from_single_file(out / "export" / "mine.safetensors", parts=wan)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.spec.frames_per_block == 0 and pipe.spec.schedule.nfe == 8
    assert pipe("a red circle", image=torch.zeros(3, 32, 48), num_frames=9, output_type="latent").latents.shape[2] == 3
    card = (out / "export" / "README.md").read_text()
    assert "library_name: comfyui-salt" in card and "semigroup: 0.2" in card and "| dmd |" in card


def test_videos_with_captions_are_clips_for_teacher_forcing(tmp_path, capsys):
    recipe = tiny_recipes.recipe(tmp_path)
    tiny_system.vae().save_pretrained(tmp_path / "vae")
    videos = tmp_path / "videos"
    videos.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), np.uint8)
    iio.imwrite(videos / "one.mp4", frames, fps=16)
    path = recipe_file(
        tmp_path,
        stage="tf",
        models=dict(student=recipe.models.student, vae=str(tmp_path / "vae")),
        data=dict(clips=str(tmp_path / "clips")),
        rollout=dict(frames=6, height=4, width=4, share={4: 1.0}),
    )
    command = ["precompute", str(path), "--videos", str(videos)]
    assert main(command) == 2 and "found no caption of" in capsys.readouterr().err
    (videos / "one.txt").write_text("a red circle\n")
    assert main(command) == 0
    (file,) = (tmp_path / "clips").glob("*.safetensors")
    clip = load_file(file)["latents"]
    assert clip.shape == (16, 6, 4, 4) and clip.std() > 0
    assert main(["distill", str(path)]) == 0
    assert load_student(tmp_path / "run" / "export" / "mine.safetensors").config.num_layers == 2


def test_a_run_resumes_only_with_its_own_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.distill.check_memory", lambda *_: None)  # takes seconds, and has tests of its own
    recipe = tiny_recipes.recipe(tmp_path)
    path = recipe_file(
        tmp_path, models=dict(student=recipe.models.student, teacher=recipe.models.teacher),
        rollout=dict(frames=3, height=4, width=4, share={4: 1.0}), run=dict(sample_every=0, tracker="none"),
    )  # fmt: skip
    assert main(["distill", str(path), "optimisation.updates=1"]) == 0
    capsys.readouterr()
    assert main(["distill", str(path), "rollout.share={8: 1.0}"]) == 2
    error = capsys.readouterr().err
    assert "rollout.share: found {8: 1.0}, expected {4: 1.0}: " in error and error.count("\n") == 1
    for override in ("run.seed=1", "optimisation.optimizer=fused"):
        assert main(["distill", str(path), override]) == 2
        assert f"error: {override.split('=')[0]}: found " in capsys.readouterr().err
    lighter = ("models.checkpointing=false", "models.keep=input", "models.offload=true")
    assert main(["distill", str(path), "optimisation.lr=1e-5", *lighter, "--keep", "1"]) == 0
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["optimisation"]["lr"] == 1e-5 and written["optimisation"]["updates"] == 2
    changed = {entry["key"]: (entry["update"], entry["old"], entry["new"]) for entry in written["history"]}
    assert changed == {
        "optimisation.lr": (1, 2e-6, 1e-5), "optimisation.updates": (1, 1, 2), "models.checkpointing": (1, True, False),
        "models.keep": (1, "attention", "input"), "models.offload": (1, False, True), "run.keep": (1, 2, 1),
    }  # fmt: skip
    assert main(["distill", str(tmp_path / "run" / "recipe.yaml"), "optimisation.lr=2e-5"]) == 0
    history = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["history"]
    assert history[:6] == written["history"] and len(history) == 7
    assert history[6] == {"update": 2, "key": "optimisation.lr", "old": 1e-5, "new": 2e-5}
    assert main(["distill", str(path), "run.out=" + str(tmp_path / "other"), "optimisation.updates=1"]) == 0


def test_a_setting_newer_than_the_run_had_its_default_there(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    save_recipe(recipe)
    path = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    del values["rollout"]["long_tuning"], values["stage"]
    path.write_text(yaml.safe_dump(values))
    save_recipe(recipe)
    assert "history" not in yaml.safe_load(path.read_text())
    with pytest.raises(RecipeError, match="stage: found ode, expected distill: "):
        save_recipe(replace(recipe, stage="ode"))


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["distill", "nowhere"], "expected a YAML file, or a name"),
        (["distill", "tiny_salt", "loss.gudance=2"], "did you mean guidance"),
        (["distill", "self_forcing"], "models.student: found no such file 'checkpoints/ode_init.pt'"),
        (["precompute", "none.txt"], "data.prompts cannot be used (none.txt: found no such file"),
        (["precompute", "tiny_salt"], "found nothing to precompute"),
        (["precompute", "i2v", "data.embeddings="], "--images: found none"),
        (["precompute", "i2v", "data.embeddings=", "--images", "none"], "--images: found no such folder none"),
        (["precompute", "tiny_tf", "--images", "x"], "--images has no effect without data.images, the folder of"),
        (["precompute", "tiny_ode", "--videos", "x"], "--videos has no effect on tiny_ode, which reads no clips of"),
        (["precompute", "tiny_salt", "--videos", "x"], "--videos has no effect on tiny_salt, which reads no clips of"),
        (["precompute", "tiny_tf", "--out", "x"], "--out has no effect on a recipe"),
        (["precompute", "tiny_tf", "--text", "x"], "--text has no effect on a recipe"),
        (["precompute", "p.txt", "--images", "x"], "--images has no effect on a prompt file"),
        (["precompute", "p.txt", "data.embeddings=x"], "data.embeddings=x has no effect on a prompt file"),
    ],
)
def test_errors_are_one_line(arguments, complaint, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["precompute x --images", "gradients x --out", "evaluate x --out"])
def test_an_empty_name_is_no_folder(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), ""])
    assert "found an empty name, expected a file or folder" in capsys.readouterr().err


def test_too_little_memory_is_an_error_before_anything_loads(tmp_path, monkeypatch, capsys):
    recipe = tiny_recipes.recipe(tmp_path)
    path = recipe_file(tmp_path, models=dict(student=recipe.models.student, teacher=recipe.models.teacher),
                       rollout=dict(frames=3, height=4, width=4, share={4: 1.0}), run=dict(sample_every=0))  # fmt: skip
    monkeypatch.setattr("train.distill.free_bytes", lambda device: 2**30)
    assert main(["distill", str(path)]) == 2
    assert "GiB per GPU" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_mode_follows_the_launcher(monkeypatch):
    assert resolve_mode("auto") == resolve_mode("single") == "single"
    with pytest.raises(InputError, match="mode: found fsdp with 1 process.*, expected auto or single"):
        resolve_mode("fsdp")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve_mode("auto") == "ddp" and resolve_mode("fsdp") == "fsdp"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert resolve_mode("auto") == "fsdp"


def test_push_uploads_the_export_folder_or_raises(tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            return f"https://hub/{name}"

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert export.push(tmp_path, "me/student", "2 updates") == "https://hub/me/student"
    assert calls == [dict(repo_id="me/student", folder_path=tmp_path, commit_message="2 updates")]

    def refuse(self, **options):
        raise OSError("no\nconnection")

    monkeypatch.setattr(Hub, "upload_folder", refuse)
    with pytest.raises(export.UploadError, match="me/student: not uploaded .no connection.; the export is in"):
        export.push(tmp_path, "me/student", "2 updates")
