"""Saves that are killed: what was there stays whole, or the new is whole; the next one removes what was left."""

import hashlib
import random

import pytest
import torch

from salt.memory import MemoryPolicy, load_memory
from salt.memory.serialization import read_clip_latents, read_clip_parts, save_clip
from tests.helpers.killing import killed_while_writing
from tests.helpers.small_memory import written
from train.distributed.checkpointing import CheckpointFolder

pytestmark = pytest.mark.slow
KILLS = 15


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_killed_save_leaves_the_older_clip_or_the_new_one(tmp_path):
    path, rng, kills = tmp_path / "clip.safetensors", random.Random(3), 0
    with torch.no_grad():
        memory = written(MemoryPolicy(), 3)

    def save(number):
        save_clip(path, memory, latents=torch.full((1, 16, 300, 60, 60), float(number)), parts=[{"seed": number}])

    save(0)
    for number in range(1, KILLS + 1):
        before = digest(path)
        kills += killed_while_writing(path, lambda n=number: save(n), rng.uniform(0, 0.12))
        if digest(path) != before:
            latents = read_clip_latents(path)
            assert latents is not None and (latents == number).all() and read_clip_parts(path) == [{"seed": number}]
        assert load_memory(path).next_frame == 9
    save(99)
    assert kills >= KILLS // 3 and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_killed_run_has_the_newest_checkpoint_whole(tmp_path):
    checkpoints, rng, kills = CheckpointFolder(tmp_path, keep=2), random.Random(4), 0

    def save(update):
        checkpoints.save(update, {"student": {"w": torch.full((4_000_000,), float(update))}, "run": {"update": update}})

    save(1)
    for update in range(2, KILLS + 2):
        older = checkpoints.updates()
        kills += killed_while_writing(tmp_path / f"step-{update:08d}", lambda n=update: save(n), rng.uniform(0, 0.1))
        parts = checkpoints.latest()
        assert parts is not None and parts["run"]["update"] == checkpoints.updates() >= older
        assert (parts["student"]["w"] == float(parts["run"]["update"])).all()
    save(99)
    assert kills >= KILLS // 3 and checkpoints.updates() == 99
    assert not list(tmp_path.glob("damaged-*")) and len(list(tmp_path.iterdir())) == 2
