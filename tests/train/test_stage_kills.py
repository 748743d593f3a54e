"""Every stage beside plain distillation survives kill -9 at any moment, and two processes train as one does."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import stage_recipes
from train.monitoring.metrics_logger import MEASURED

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.helpers import stage_recipes
from train.distill import trainer_of
folder, stage, mode, out, updates = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
recipe = stage_recipes.RECIPES[stage](folder)
opt = replace(recipe.optimisation, updates=updates, micro_batch=1, batch=2, critic_per_generator=1)
trainer_of(replace(recipe, optimisation=opt, run=replace(recipe.run, out=out, save_every=1)), mode).run()
"""


def curve(folder):
    with (Path(folder) / "losses.csv").open() as file:
        rows = [(int(r["step"]), r["name"], r["value"]) for r in csv.DictReader(file)]
    return [row for row in rows if row[1] not in MEASURED]


@pytest.fixture
def command(tmp_path):
    def made(stage, mode, out, updates):
        return [str(script), str(tmp_path), stage, mode, str(out), str(updates)]

    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT)))
    return made


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", stage_recipes.RECIPES)
def test_kill_at_any_moment_and_resume(tmp_path, command, stage):
    stage_recipes.RECIPES[stage](tmp_path)  # writes the models before the first kill
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run([sys.executable, *command(stage, "single", whole, 6)], check=True, env=ENVIRONMENT)
    seconds = time.monotonic() - began
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, *command(stage, "single", killed, 6)], env=ENVIRONMENT)
        try:
            process.wait(timeout=seconds * (0.4 + 0.5 * float(torch.rand((), generator=generator))))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run([sys.executable, *command(stage, "single", killed, 6)], check=True, env=ENVIRONMENT)
    assert curve(killed) == curve(whole) and {row[0] for row in curve(whole)} == set(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", stage_recipes.RECIPES)
def test_two_processes_give_the_losses_of_one(tmp_path, command, stage, mode):
    stage_recipes.RECIPES[stage](tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([sys.executable, *command(stage, "single", one, 3)], check=True, env=ENVIRONMENT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, *command(stage, mode, two, 3)], check=True, env=ENVIRONMENT)
    for (update, name, a), (_, other, b) in zip(curve(one), curve(two), strict=True):
        assert name == other and float(b) == pytest.approx(float(a), rel=1e-4, abs=1e-6), (update, name)
