"""One stream over several processes: attention and memory split by heads, equal to one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from salt.cli import main
from salt.errors import InputError
from salt.memory import load_memory, save_memory
from salt.parallel.heads import HeadGroup
from salt.parallel.memory_shards import own_part
from salt.parallel.no_frames import NoFrames
from salt.parallel.processes import split_heads
from tests.helpers import head_processes, tiny_system

ROOT = Path(__file__).parents[2]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check(size: int, folder: Path, policy: str) -> None:
    pipe = head_processes.pipeline()
    expected, memory = head_processes.make(pipe, policy)
    head_processes.run(size, folder, policy)
    assert error(torch.load(folder / "clip.pt", weights_only=True), expected) < 1e-5
    shares = [int((folder / f"{rank}.bytes").read_text()) for rank in range(size)]
    assert shares == [memory.nbytes // size] * size
    merged = load_memory(folder / "memory.safetensors", fingerprint=memory.fingerprint, geometry=memory.geometry)
    assert merged.held == memory.held and merged.next_frame == memory.next_frame
    if memory.policy.precision == "model":
        index = memory.slot_index(memory.held)
        for ours, theirs in zip(memory.store.buffers, merged.store.buffers, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert error(b.index_select(1, index), a.index_select(1, index)) < 1e-5


def test_two_processes_equal_one(tmp_path):
    check(2, tmp_path, "sink:3,window:9")


LEAVES = """
import faulthandler, torch, torch.distributed as dist
from salt.parallel.processes import leave_group
faulthandler.dump_traceback_later(60, exit=True)
dist.init_process_group("cpu:gloo", store=dist.HashStore(), rank=0, world_size=1)
sent = torch.ones(10_000_000)
dist.all_gather([torch.empty_like(sent)], sent, async_op=True)
del sent  # gloo's thread alone holds both tensors, and needs Python's lock to free them
leave_group()
assert not dist.is_initialized()
leave_group()
"""


def test_a_process_leaves_while_tensors_of_the_last_exchange_are_freed():
    """With torch 2.6 a bare `destroy_process_group` waits for ever here."""
    done = subprocess.run([sys.executable, "-c", LEAVES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["relative:3,window:9", "window:9,int8"])
def test_four_processes_equal_one(tmp_path, policy):
    check(4, tmp_path, policy)


@pytest.mark.slow
def test_the_first_error_ends_all_processes(tmp_path):
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="exit code 2"):
        head_processes.run(2, tmp_path, failing=1)
    assert (tmp_path / "1.error").read_text() == "disk of process 1 is full"
    assert [path.name for path in tmp_path.iterdir()] == ["1.error"]


def launched(tmp_path: Path, model: Path, size: int, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(size)]
    command += ["--master_port", str(head_processes.free_port()), "-m", "salt.cli", "generate", head_processes.PROMPT]
    command += ["--parallel", "heads", "--model", str(model), "--frames", "21", "--nfe", "2", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=170)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "model"
    head_processes.pipeline().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_command_line_writes_and_prints_once(model, tmp_path):
    saved, clip = tmp_path / "clip.safetensors", tmp_path / "clip.mp4"
    done = launched(tmp_path, model, 4, "-o", str(clip), "--save-memory", str(saved))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("21 frames in") == 1 and sorted(p.name for p in tmp_path.iterdir()) == [
        "clip.mp4",
        "clip.safetensors",
    ]
    alone = ["generate", head_processes.PROMPT, "--model", str(model), "--frames", "21", "--nfe", "2"]
    assert main([*alone, "-o", str(tmp_path / "one.mp4"), "--save-memory", str(tmp_path / "one.safetensors")]) == 0
    ours, theirs = (load_memory(tmp_path / f"{name}.safetensors") for name in ("clip", "one"))
    assert ours.geometry == theirs.geometry and ours.held == theirs.held and ours.fingerprint == theirs.fingerprint
    extended = launched(tmp_path, model, 2, "--frames", "12", "-o", str(clip), "--extend", str(saved))
    assert extended.returncode == 0 and extended.stdout.count("12 frames in") == 1, extended.stderr[-2000:]
    failed = launched(tmp_path, model, 2, "-o", str(clip), "--memory", "window:2")
    assert failed.returncode != 0 and failed.stderr.count("error: --memory: window: found 2") == 1


def test_what_is_refused(monkeypatch, capsys, tmp_path):
    pipe = tiny_system.pipeline()
    with pytest.raises(
        InputError, match="parallel: found 4 processes for 2 heads, expected a number that divides them: 2"
    ):
        split_heads(pipe.transformer, pipe.acceleration, HeadGroup(0, 4))
    assert main(["generate", "a red circle", "--parallel", "heads"]) == 2
    assert "--parallel: found one process, expected several" in capsys.readouterr().err
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate", "a red circle", "--parallel", "heads", "--device", "cuda"]) == 2
    assert "--device: found cuda, expected none" in capsys.readouterr().err
    assert main(["generate", "--prompts", str(prompts), "--parallel", "heads"]) == 2
    assert "--parallel is for one clip" in capsys.readouterr().err


def test_a_whole_memory_is_cut_into_heads(tmp_path):
    pipe = head_processes.pipeline()
    _, memory = head_processes.make(pipe, "window:9,int8")
    parts = [own_part(memory, HeadGroup(rank, 4)) for rank in range(4)]
    assert [part.geometry.heads for part in parts] == [1] * 4 and sum(p.nbytes for p in parts) == memory.nbytes
    for i, layer in enumerate(memory.store.buffers):
        for n, buffer in enumerate(layer):
            assert torch.equal(torch.cat([part.store.buffers[i][n] for part in parts], dim=3), buffer)
    save_memory(parts[0], tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="heads differs: found 1, expected 4"):
        load_memory(tmp_path / "part.safetensors", geometry=memory.geometry)


def test_the_decoder_of_a_process_that_writes_nothing_counts_frames():
    decoder = NoFrames()
    assert decoder.decode(torch.zeros(1, 16, 3, 4, 4)).shape == (1, 3, 9, 1, 1)
    assert decoder.fork().decode(torch.zeros(1, 16, 3, 4, 4)).shape[2] == 12
