"""`python -m train distill` with 8-bit optimizer states: killed, resumed and exported like a run without a stop."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from train.distributed.checkpointing import CheckpointFolder

ROOT = Path(__file__).parents[2]
UPDATES, SECONDS = 3, 900  # seconds at most, for a run
SMALL = [
    *("optimisation.optimizer=8bit", f"optimisation.updates={UPDATES}", "optimisation.batch=4"),
    *("optimisation.critic_per_generator=1", "optimisation.ema_start=1", "loss.align_start=0"),
    *("rollout.frames=3", "rollout.height=4", "rollout.width=4", "run.save_every=1", "run.sample_every=0"),
]
FORMS = {"one": (1, []), "fsdp": (2, ["--mode", "fsdp"]), "hsdp": (4, ["optimisation.shard=2", "--mode", "fsdp"])}


def started(form: str, out: Path) -> subprocess.Popen:
    processes, options = FORMS[form]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    run = ["-m", "train", "distill", "tiny_first", f"run.out={out}", *SMALL, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *(launcher if processes > 1 else []), *run]
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def kill_after_first_checkpoint(process: subprocess.Popen, out: Path) -> None:
    """kill -9 of the run's processes, and of what launched them, once a checkpoint is there."""
    until = time.monotonic() + SECONDS
    while not (out / "checkpoints" / "step-00000001").is_dir():
        assert process.poll() is None and time.monotonic() < until, "no checkpoint"
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.skipif(torch.__version__ < TorchVersion("2.8"), reason="FSDP2 as it is used needs torch 2.8")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the processes of a launcher from /proc")
@pytest.mark.parametrize("form", FORMS)
def test_a_killed_run_goes_on_to_the_student_of_one_without_a_stop(tmp_path, form):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert started(form, whole).wait(SECONDS) == 0
    kill_after_first_checkpoint(started(form, killed), killed)
    assert not (killed / "export").exists()
    assert started(form, killed).wait(SECONDS) == 0
    exported = [out / "export" / "tiny_first.safetensors" for out in (whole, killed)]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    last = [CheckpointFolder(out / "checkpoints", 2).latest() for out in (whole, killed)]
    for part in ("student_optimizer", "critic_optimizer"):
        states, others = (each[part]["moments"] for each in last)
        assert states.keys() == others.keys() and states
        for name, moments in states.items():
            for moment, shards in moments.items():
                assert len(shards) == min(FORMS[form][0], 2)
                assert all(torch.equal(*pair) for pair in zip(shards, others[name][moment], strict=True)), name
