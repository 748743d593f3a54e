"""The command line: its results, its error messages, and what remains after an interruption."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from salt import cli
from salt.acceleration.device import usable_device
from salt.checkpoints import load_student, read_checkpoint, save_diffusers, save_student
from salt.io.video import VideoWriter, read_video
from salt.memory import load_memory, save_memory
from salt.memory.serialization import load_negative, read_clip_latents, read_clip_parts, save_clip
from salt.pipeline import SaltPipeline
from salt.pipeline.write_clip import write_clip
from salt.spec import TINY_FOLDER
from tests.helpers import tiny_system

PROMPT = "a fast red circle moving right"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_system.folder(tmp_path_factory.mktemp("model")))


def salt(*arguments):
    return cli.main([str(a) for a in arguments])


def generate(model, out, *more, prompt=PROMPT):
    return salt(
        "generate", *([prompt] if prompt else []), "--model", model, "--nfe", 2, "--device", "cpu", "-o", out, *more
    )


def frames_of(path):
    return imageio_ffmpeg.count_frames_and_secs(path)[0]


def test_generate_writes_a_video_of_the_requested_length(model, tmp_path, capsys):
    assert generate(model, tmp_path / "a.mp4", "--seconds", 1) == 0
    assert frames_of(tmp_path / "a.mp4") == 21
    told = capsys.readouterr().out
    assert "21 frames in" in told and "(32x32, NFE 2)" in told


def test_rounding_of_seconds_to_blocks_is_logged(model, tmp_path, caplog):
    assert generate(model, tmp_path / "a.mp4", "--seconds", 0.8, "--tiles") == 0
    assert "0.8 s rounded up to 21 frames" in caplog.text and frames_of(tmp_path / "a.mp4") == 21


def test_extend_from_a_saved_memory(model, tmp_path):
    memory = tmp_path / "m.safetensors"
    assert generate(model, tmp_path / "a.mp4", "--frames", 21, "--save-memory", memory) == 0
    assert load_memory(memory).next_frame == 6
    assert generate(model, tmp_path / "b.mp4", "--frames", 12, "--extend", memory, "--save-memory", memory) == 0
    assert generate(model, tmp_path / "whole.mp4", "--frames", 33) == 0
    assert load_memory(memory).next_frame == 9
    joined = torch.cat([read_video(tmp_path / "a.mp4"), read_video(tmp_path / "b.mp4")], 2)
    assert (joined - read_video(tmp_path / "whole.mp4")).abs().mean() < 0.03  # two encodings of the same frames


@pytest.mark.parametrize(("policy", "kept"), [("full", 36), ("sink:1,window:9", 30)])
def test_a_saved_memory_has_the_latents_for_an_extension(model, tmp_path, policy, kept):
    memory, frames = tmp_path / "m.safetensors", 4 * 36 - 3
    assert generate(model, tmp_path / "a.mp4", "--frames", frames, "--memory", policy, "--save-memory", memory) == 0
    assert load_file(memory)["latents"].shape[2] == kept
    more = ("--frames", 12, "--extend", memory, "--prompt-at", 9.0, "a slow blue square moving up")
    assert generate(model, tmp_path / "b.mp4", *more) == 0
    assert frames_of(tmp_path / "b.mp4") == 12


def test_finished_prompts_are_not_generated_again(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na slow blue square moving up\n")
    out = tmp_path / "clips"
    assert generate(model, out, "--prompts", prompts, "--frames", 9, prompt=None) == 0
    videos = sorted(out.glob("*.mp4"))
    assert [v.name[:9] for v in videos] == ["0000-a-fa", "0001-a-sl"] and all(frames_of(v) == 9 for v in videos)
    stamps = [v.stat().st_mtime_ns for v in videos]
    videos[1].with_suffix(".json").unlink()  # as if the second had been interrupted
    assert generate(model, out, "--prompts", prompts, "--frames", 9, prompt=None) == 0
    again = [v.stat().st_mtime_ns for v in videos]
    assert again[0] == stamps[0] and again[1] != stamps[1]
    assert "2 clips, 1 of them from before" in capsys.readouterr().out
    assert json.loads(videos[0].with_suffix(".json").read_text())["prompt"] == PROMPT


@pytest.mark.filterwarnings("error::FutureWarning")
def test_the_dtype_argument_suits_the_installed_diffusers(model, tmp_path):
    assert generate(model, tmp_path / "a.mp4", "--frames", 9, "--dtype", "bfloat16") == 0


def test_a_file_without_prompts_is_named(model, tmp_path, capsys):
    (tmp_path / "bin.txt").write_bytes(b"\xff\xfe")
    assert generate(model, tmp_path / "out", "--prompts", tmp_path / "bin.txt", prompt=None) == 2
    assert "bin.txt: not UTF-8 text" in capsys.readouterr().err
    assert generate(model, tmp_path / "out", "--prompts", tmp_path, prompt=None) == 2
    assert f"{tmp_path}: found a folder, expected a file with one prompt per line" in capsys.readouterr().err


def test_a_clip_is_made_again_when_what_it_is_made_from_changes(model, tmp_path, capsys):
    folder, prompts, out = tmp_path / "model", tmp_path / "prompts.txt", tmp_path / "clips"
    shutil.copytree(model, folder)
    prompts.write_text(f"{PROMPT}\na red square\n")

    def made(*more, frames=9):
        capsys.readouterr()
        assert generate(str(folder), out, "--prompts", prompts, "--frames", frames, *more, prompt=None) == 0
        return capsys.readouterr().out.count(" frames in")

    assert made() == 2 and made() == 0
    prompts.write_text(f"a red square\n{PROMPT}\n")  # and other seeds
    assert made() == 2 and made() == 0
    assert made("--seed", 1) == 2
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({n: x * 1.01 for n, x in load_file(weights).items()}, weights, {"format": "pt"})
    assert made() == 2 and len(list(out.glob("*.mp4"))) == 8
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(image)
    assert made("--image", image, frames=13) == 2 and made("--image", image, frames=13) == 0
    Image.new("RGB", (32, 32), "blue").save(image)
    assert made("--image", image, frames=13) == 2


def test_damaged_clips_of_a_batch_are_made_anew_and_said(model, tmp_path, capsys, caplog):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "clips"
    prompts.write_text("a red circle\na red square\na slow circle\na square\n")
    more = (model, out, "--prompts", prompts, "--frames", 9)
    assert generate(*more, prompt=None) == 0
    videos = sorted(out.glob("*.mp4"))
    videos[0].unlink()
    videos[1].write_bytes(videos[1].read_bytes()[:100])
    videos[2].with_suffix(".json").write_text("{")
    capsys.readouterr()
    assert generate(*more, prompt=None) == 0
    said = "\n".join(record.getMessage() for record in caplog.records)
    for video, reason in zip(videos, ("video is missing", "video is damaged", "record is damaged"), strict=False):
        assert f"{video}: " in said and reason in said
    assert "4 clips, 1 of them from before" in capsys.readouterr().out and all(frames_of(v) == 9 for v in videos)


def test_unknown_words_of_all_lines_are_named_before_the_first_clip(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na red dog\na dog runs\n{'a ' * 17}\n,\n")
    assert generate(model, tmp_path / "out", "--prompts", prompts, prompt=None) == 2
    error = capsys.readouterr().err
    assert f"{prompts}: found 4 of 5 prompts that cannot be used: 'dog' (lines 3, 4), 'runs' (line 4), " in error
    assert "more than 16 words (line 5), no word (line 6); salt-tiny knows only: a, " in error and len(error) < 420
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_a_checkpoint_is_not_converted_onto_itself(model, capsys):
    weights = Path(model) / "transformer" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert salt("convert", weights, weights) == 2 and weights.read_bytes() == before
    assert f"{weights}: found the source, expected another file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("live", "--record", ""), ("replay", ""), ("replay", "a.json", "-o", "")])
def test_an_empty_name_is_no_replay(command, capsys):
    with pytest.raises(SystemExit):
        salt(*command)
    assert "found an empty name, expected a file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["832", "x480", "832x", "١x2", "1" * 6 + "x2"])
def test_a_size_is_width_and_height(size, capsys):
    for command in ("live", "plan"):
        with pytest.raises(SystemExit):
            salt(command, "--size", size)
        assert "argument --size: found " in capsys.readouterr().err
    assert salt("plan", "--size", "99999x16") == 2 and "width: found 99999 pixels" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--image", "--extend", "--decoder", "--prompts"])
def test_an_empty_name_is_no_folder(model, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        generate(model, tmp_path / "a.mp4", option, "")
    assert f"argument {option}: found an empty name, expected a file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "prompt: found 2 processes for one clip, expected one (or --prompts FILE, or "),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "x"}, "torchrun --nproc_per_node N -m salt.cli"),
    ],
)
def test_several_processes_do_not_write_one_file(model, tmp_path, capsys, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert generate(model, tmp_path / "a.mp4") == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_the_prompts(model, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([PROMPT] * 3))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29577"]
    command += ["-m", "salt.cli", "generate", "--prompts", str(prompts)]
    command += ["--model", model, "--nfe", "2", "--frames", "9", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 3
    assert done.stdout.count("9 frames in") == 3, "each prompt is made by one of the processes"


def test_prompt_at_and_memory_policy(model, tmp_path):
    more = ("--frames", 33, "--memory", "sink:3,window:9,int8", "--prompt-at", 0.7, "a slow blue square moving up")
    assert generate(model, tmp_path / "a.mp4", *more) == 0
    assert frames_of(tmp_path / "a.mp4") == 33


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--frames", 20), "error: --frames: found 20, expected 9 or 21"),
        (("--frames", 9, "--seconds", 1), "error: --frames cannot be combined with `seconds`"),
        (("--width", 0), "error: --width: found 0 pixels, expected 1 or more"),
        (("--lora", ""), "error: --lora: found an empty name, expected a file"),
        (("--text-cache", "x"), "error: --text-cache has no effect with "),
        (("--text-precision", "int8"), "error: --text-precision has no effect with "),
        (("--nfe", 0), "error: --nfe: found 0, expected 1 to 1000"),
        (("--prompt-at", -1, PROMPT), "error: --prompt-at: found a change at -1 s, expected above 0"),
        (("--memory", "ring:3"), "error: --memory: found 'ring:3'"),
        (("--memory", ""), "error: --memory: found ''"),
        (("--memory", "window:2"), "error: --memory: window: found 2, expected at least 3"),
        (("--image", "none.png"), "none.png"),
        (("--extend", "none.safetensors"), "none.safetensors: found no such file"),
        (("--frames", 12, "--guidance", "3", "--extend", "WRITTEN"), "--guidance needs the unconditional branch"),
        (("--image", "FOLDER.mp4"), "FOLDER.mp4: found a folder, expected a video"),
        (("--extend", "FOLDER.mp4"), "FOLDER.mp4: found a folder, expected a Salt memory file"),
        (("--decoder", "FOLDER.mp4"), "FOLDER.mp4: found a folder, expected TAEHV weights"),
        (("--device", "nowhere"), "--device: found nowhere, expected cpu"),
        (("--save-memory", "a.mp4"), "a.mp4: expected a file name that ends in .safetensors"),
        (("--save-memory", "/proc/x.safetensors"), "/proc/x.safetensors: cannot write to folder /proc"),
    ],
)
def test_errors_are_one_line(model, tmp_path, capsys, more, message):
    memory = tmp_path / "m.safetensors"
    if "WRITTEN" in more:
        generate(model, tmp_path / "first.mp4", "--frames", 9, "--save-memory", memory)
        more = [memory if m == "WRITTEN" else m for m in more]
    (tmp_path / "FOLDER.mp4").mkdir()
    more = [tmp_path / m if m == "FOLDER.mp4" else m for m in more]
    capsys.readouterr()
    more = more if "--frames" in more else ("--frames", 9, *more)
    assert generate(model, tmp_path / "a.mp4", *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "a.mp4").exists()


def test_a_clip_with_guidance_is_extended_with_guidance(model, tmp_path):
    memory = tmp_path / "m.safetensors"
    guided = ("--guidance", 2, "--save-memory", memory)
    assert generate(model, tmp_path / "a.mp4", "--frames", 9, *guided) == 0
    assert load_negative(memory).next_frame == 3
    assert generate(model, tmp_path / "b.mp4", "--frames", 12, *guided, "--extend", memory, "--seed", 5) == 0
    assert generate(model, tmp_path / "whole.mp4", "--frames", 21, "--guidance", 2) == 0
    joined = torch.cat([read_video(tmp_path / "a.mp4"), read_video(tmp_path / "b.mp4")], 2)
    assert joined.shape == read_video(tmp_path / "whole.mp4").shape
    assert load_negative(memory).next_frame == load_memory(memory).next_frame == 6
    assert [(p["prompt"], p["seed"], p["guidance_scale"]) for p in read_clip_parts(memory)] == [
        (PROMPT, 0, 2.0),
        (PROMPT, 5, 2.0),
    ]
    assert generate(model, tmp_path / "c.mp4", "--frames", 9, "--save-memory", memory) == 0
    assert load_negative(memory) is None, "the branch of another clip"
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["m.safetensors"]


def older_set(memory):
    """What an older version wrote in place of one file."""
    branch, beside = memory.with_name("m.negative.safetensors"), memory.with_name("m.safetensors.latents.safetensors")
    save_memory(load_negative(memory), branch)
    save_file({"latents": read_clip_latents(memory)}, beside)
    save_memory(load_memory(memory), memory)
    return branch, beside


def test_a_set_of_older_files_is_read_and_replaced_by_one(model, tmp_path, monkeypatch):
    memory, guided = tmp_path / "m.safetensors", ("--frames", 9, "--guidance", 2)
    assert generate(model, tmp_path / "a.mp4", *guided, "--save-memory", memory) == 0
    extension = ("--frames", 12, "--guidance", 2, "--extend", memory)
    assert generate(model, tmp_path / "one.mp4", *extension) == 0
    older = older_set(memory)
    assert generate(model, tmp_path / "set.mp4", *extension) == 0
    assert torch.equal(read_video(tmp_path / "one.mp4"), read_video(tmp_path / "set.mp4"))
    # Killed as soon as the new file is in place: the older files beside it are no part of it.
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **more: None if self in older else unlink(self, **more))
    assert generate(model, tmp_path / "a.mp4", "--frames", 21, "--seed", 3, "--save-memory", memory) == 0
    assert all(file.exists() for file in older)
    assert load_negative(memory) is None and read_clip_latents(memory).shape[2] == 6
    assert generate(model, tmp_path / "b.mp4", "--frames", 12, "--extend", memory) == 0
    monkeypatch.undo()
    for file in older:
        file.unlink()
    assert generate(model, tmp_path / "a.mp4", *guided, "--save-memory", memory) == 0
    older = older_set(memory)
    assert generate(model, tmp_path / "a.mp4", *guided, "--save-memory", memory) == 0
    assert not any(file.exists() for file in older)


def test_latents_that_do_not_belong_to_the_memory_are_refused(model, tmp_path, capsys):
    memory = tmp_path / "m.safetensors"
    assert generate(model, tmp_path / "a.mp4", "--frames", 21, "--guidance", 2, "--save-memory", memory) == 0
    beside = older_set(memory)[1]
    latents, whole = load_file(beside)["latents"], beside.read_bytes()
    more = ("--frames", 12, "--extend", memory)
    for damage in (
        lambda: beside.write_bytes(whole[:-100]),
        lambda: save_file({"other": latents}, beside),
        lambda: save_file({"latents": latents[:, :, :4].contiguous()}, beside),
    ):
        damage()
        assert generate(model, tmp_path / "b.mp4", *more) == 2
        error = capsys.readouterr().err
        assert f"{beside}: found" in error and "expected shape (1, 16, 6, 4, 4); remove it to go on without" in error
    beside.unlink()
    assert generate(model, tmp_path / "b.mp4", "--frames", 9, *more[2:], "--save-memory", memory) == 0
    assert read_clip_latents(memory) is None, "the latents of the first part are not known any more"
    save_clip(memory, load_memory(memory), latents=latents[:, :, :4])
    assert generate(model, tmp_path / "b.mp4", *more) == 2
    assert f"{memory}: latents: found shape (1, 16, 4, 4, 4), expected (1, 16, 9" in capsys.readouterr().err


def test_a_device_that_is_not_available(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr("torch.empty", refuse)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device: found cuda, expected cpu \(this torch sees no CUDA device\)"):
        usable_device("cuda")


def test_unknown_word(model, tmp_path, capsys):
    assert generate(model, tmp_path / "a.mp4", prompt="a red dragon") == 2
    assert "unknown word 'dragon'" in capsys.readouterr().err
    assert salt("generate", " ", "--model", model, "-o", tmp_path / "a.mp4") == 2
    assert "prompt: found an empty one, expected words among: a, moving" in capsys.readouterr().err


def test_memory_of_another_model(model, tmp_path, capsys):
    other = tiny_system.folder(tmp_path / "other", seed=1)
    assert generate(str(other), tmp_path / "a.mp4", "--frames", 9, "--save-memory", tmp_path / "m.safetensors") == 0
    assert generate(model, tmp_path / "b.mp4", "--frames", 12, "--extend", tmp_path / "m.safetensors") == 2
    assert "fingerprint differs" in capsys.readouterr().err


def test_missing_model_and_checkpoint_without_parts(tmp_path, capsys):
    assert salt("generate", PROMPT, "--model", tmp_path / "none", "-o", tmp_path / "a.mp4") == 2
    assert "found no such file or folder, expected a model" in capsys.readouterr().err
    save_diffusers(tiny_system.student(), tmp_path / "bare")
    assert salt("generate", PROMPT, "--model", tmp_path / "bare", "-o", tmp_path / "a.mp4") == 2
    assert "--parts is needed with a checkpoint alone" in capsys.readouterr().err
    parts = ("--parts", tmp_path / "nothere", "-o", tmp_path / "a.mp4")
    assert salt("generate", PROMPT, "--model", tmp_path / "bare", *parts) == 2
    assert f"--parts: found no such folder {tmp_path / 'nothere'}" in capsys.readouterr().err
    assert salt("generate", PROMPT, *parts) == 2
    assert "--parts cannot be combined with salt-tiny, which has its own" in capsys.readouterr().err


def test_output_that_cannot_be_written(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert generate(model, tmp_path / "file" / "a.mp4", "--frames", 9) == 2
    assert "cannot write to folder" in capsys.readouterr().err


def test_a_full_disk_keeps_the_frames_written_so_far(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.mp4"
    out.write_bytes(b"an older video")
    start = VideoWriter._start

    def failing(self, width, height):
        process = start(self, width, height)
        real = process.stdin

        class Full:
            wrote = 0

            def write(self, data):
                self.wrote += 1
                if self.wrote > 12:
                    raise OSError(28, "No space left on device")
                return real.write(data)

            def close(self):
                real.close()

        process.stdin = Full()
        return process

    monkeypatch.setattr(VideoWriter, "_start", failing)
    assert generate(model, out, "--frames", 33) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and f"12 are kept and can be played in {tmp_path}/a.partial.mp4" in error
    assert out.read_bytes() == b"an older video" and frames_of(tmp_path / "a.partial.mp4") == 12


def test_latents_of_written_blocks_are_let_go(model, tmp_path, monkeypatch):
    held, real = [], SaltPipeline.stream

    def spy(self, *arguments, **more):
        for chunk in real(self, *arguments, **more):
            held.append(weakref.ref(chunk.latents))
            yield chunk

    monkeypatch.setattr(SaltPipeline, "stream", spy)
    clip = ("--frames", 12 * 14 - 3, "--memory", "window:6")
    assert generate(model, tmp_path / "a.mp4", *clip) == 0 and len(held) == 14
    pipe, inputs = SaltPipeline.from_pretrained(model), {"num_frames": 12 * 14 - 3, "memory_policy": "window:6"}
    kept = write_clip(pipe, PROMPT, tmp_path / "b.mp4", 0, inputs)
    assert not kept.latents and not any(ref() is not None for ref in held)
    kept = write_clip(pipe, PROMPT, tmp_path / "b.mp4", 0, inputs, keep_latents=True)
    assert sum(x.shape[2] for x in kept.latents) == 30
    assert sum(ref() is not None for ref in held) == 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_playable_file(model, tmp_path, number, code):
    out = tmp_path / "a.mp4"
    command = [
        sys.executable,
        "-m",
        "salt.cli",
        "generate",
        PROMPT,
        "--model",
        model,
        "--device",
        "cpu",
        "-o",
        str(out),
    ]
    process = subprocess.Popen(
        [*command, "--frames", "3009"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(1200):
        time.sleep(0.1)
        if any(p.stat().st_size > 2000 for p in tmp_path.glob(".a.*.partial.mp4")):
            break
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert 0 < frames_of(out) < 3009 and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_inspect_describes_a_file(model, tmp_path, capsys):
    generate(model, tmp_path / "a.mp4", "--frames", 9, "--save-memory", tmp_path / "m.safetensors")
    capsys.readouterr()
    assert salt("inspect", tmp_path / "m.safetensors") == 0
    memory = capsys.readouterr().out
    assert "Salt memory" in memory and "3 latent frames (0-2)" in memory
    assert salt("inspect", Path(model) / "transformer") == 0
    assert "heads" in capsys.readouterr().out
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert salt("inspect", tmp_path / "x.safetensors") == 2


def test_convert_round_trip(model, tmp_path):
    wan, folder = tmp_path / "student.safetensors", tmp_path / "back"
    assert salt("convert", Path(model) / "transformer", wan) == 0
    assert read_checkpoint(wan).metadata and "causal_ar" in str(read_checkpoint(wan).metadata)
    assert salt("convert", wan, folder, "--dtype", "bfloat16") == 0
    assert read_checkpoint(folder).dtype == torch.bfloat16


def test_converted_files_know_the_size_that_they_were_trained_for(tmp_path, capsys):
    one, folder, again = tmp_path / "one.safetensors", tmp_path / "folder", tmp_path / "again.safetensors"
    for source, target in ((TINY_FOLDER / "transformer", one), (one, folder), (folder, again)):
        assert salt("convert", source, target) == 0
    capsys.readouterr()
    assert salt("inspect", again) == 0
    assert re.search(r"trained size\W+64x64", capsys.readouterr().out)
    pipe = SaltPipeline.from_single_file(again, parts=TINY_FOLDER)
    assert pipe.default_size == (64, 64)
    bare = tmp_path / "bare.safetensors"
    save_student(load_student(again), bare, size=(96, 32))
    found = read_checkpoint(bare)
    assert found.size == (96, 32) and found.spec is None, "a size alone is no recipe"
    assert SaltPipeline.from_single_file(bare, parts=TINY_FOLDER).default_size == (96, 32)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_convert_refuses_a_folder_with_a_files_suffix(model, tmp_path, capsys, suffix):
    assert salt("convert", Path(model) / "transformer", tmp_path / f"o{suffix}") == 2
    assert f"o{suffix}: expected a name ending in .safetensors, or a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pull_lists_its_parts(capsys):
    assert salt("pull") == 0
    assert "salt-cf" in capsys.readouterr().out
    assert salt("pull", "salt-xx") == 2


def test_help_is_quick():
    code = "import sys; import salt.cli; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_embedded_default_loads():
    pipe = SaltPipeline.tiny()
    assert pipe.default_size == (64, 64) and pipe.spec.frames_per_block == 3
