"""A run's folder: one run at a time, a checkpoint on a signal to end, and damaged checkpoints set aside."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from salt.io.folder_lock import FolderInUseError, folder_lock
from salt.io.partial_files import RUN, new_partial
from tests.helpers import tiny_recipes
from train.command_line import run_command
from train.distill import distill
from train.distributed.checkpointing import CheckpointFolder
from train.methods.sc_dmd import SCDMDTrainer

ROOT = Path(__file__).parents[2]


def filled(folder, updates=(1, 2)):
    checkpoints = CheckpointFolder(folder, keep=3)
    for update in updates:
        checkpoints.save(update, {"a": {"x": torch.full((500,), float(update))}})
    return checkpoints


def flipped(path):
    """One bit in the middle of a tensor: the file keeps its size, and torch reads it."""
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((500,), 2.0).numpy().tobytes()) + 1000
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda step: flipped(step / "a.pt"), "a.pt: its checksum of a/data/0 differs"),
        (lambda step: (step / "a.pt").write_bytes(b"half"), "a.pt: found 4 bytes, expected"),
        (lambda step: (step / "a.pt").unlink(), "a.pt: found no such file"),
        (lambda step: (step / "a.pt").write_bytes(bytes((step / "a.pt").stat().st_size)), "a.pt: File is not a zip"),
        (lambda step: (step / "complete.json").write_text("[]"), "complete.json: found [], expected a JSON object"),
        (lambda step: (step / "complete.json").write_text('{"upd'), "complete.json: "),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, damage, told):
    checkpoints = filled(tmp_path)
    damage(tmp_path / "step-00000002")
    parts = checkpoints.latest()
    assert parts is not None and torch.equal(parts["a"]["x"], torch.ones(500))
    error = capsys.readouterr().err
    assert f"{tmp_path / 'step-00000002'}: is damaged ({told}" in error and "damaged-step-00000002" in error
    checkpoints.keep = 1
    checkpoints.save(2, {"a": {"x": torch.zeros(500)}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-00000002", "step-00000002"]


def test_a_full_disk_is_named_and_the_checkpoint_before_is_kept(tmp_path):
    """A limit on the size of files stands for the disk: both let torch's writer fail in the middle of a file."""
    resource = pytest.importorskip("resource")
    checkpoints = filled(tmp_path, updates=(1,))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"step-00000002: cannot be written \(.*GB are free.*step-00000001, from"
        ) as told:
            checkpoints.save(2, {"a": {"x": torch.zeros(2**20)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(str(told.value)) <= 400 and [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_checkpoints_that_a_killed_run_began_are_removed(tmp_path):
    checkpoints = filled(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    begun = new_partial(tmp_path / "step-00000007", ".partial")
    begun = begun.with_name(begun.name.replace(f"-{os.getpid()}-{RUN}", f"-{process.pid}-{RUN}"))
    begun.mkdir()
    assert checkpoints.newest() == tmp_path / "step-00000002" and not begun.exists()


def test_a_removal_that_is_cut_short_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    checkpoints = filled(tmp_path)
    checkpoints.keep = 1
    with monkeypatch.context() as patch:
        patch.setattr("train.distributed.checkpointing.shutil.rmtree", lambda *_, **__: None)
        checkpoints.save(3, {"a": {"x": torch.zeros(5)}})
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
    assert len(list(tmp_path.glob(".step-*"))) == 2 and checkpoints.updates() == 3


def test_a_folder_is_locked_until_its_process_ends(tmp_path):
    program = "import sys, pathlib\nfrom salt.io.folder_lock import folder_lock\n"
    program += "with folder_lock(pathlib.Path(sys.argv[1])):\n    print(flush=True)\n    input()\n"
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    message = rf"is in use by another run \(process {process.pid}\)"
    with pytest.raises(FolderInUseError, match=message), folder_lock(tmp_path):
        pass
    process.kill()
    process.wait()
    with folder_lock(tmp_path):
        pass


def test_two_trainers_in_one_folder_are_refused(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path, run=dict(out=str(tmp_path / "out")))
    with folder_lock(tmp_path / "out"), pytest.raises(FolderInUseError, match="out: is in use by another run"):
        distill(recipe, "single")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_writes_a_checkpoint(tmp_path, monkeypatch, number, code, capsys):
    folders = dict(out=str(tmp_path / "out"), save_every=0)
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=3), run=folders)
    update = SCDMDTrainer.update

    def told(self, count):
        values = update(self, count)
        if count == 1:
            os.kill(os.getpid(), number)
        return values

    monkeypatch.setattr(SCDMDTrainer, "update", told)
    parser = argparse.ArgumentParser()
    parser.set_defaults(run=lambda _: SCDMDTrainer(recipe, "single").run())
    before = signal.getsignal(number)
    assert run_command(parser, []) == code and signal.getsignal(number) is before
    assert "stopping after this update, with a checkpoint" in capsys.readouterr().err
    newest = CheckpointFolder(tmp_path / "out" / "checkpoints", 2).newest()
    assert newest is not None and newest.name == "step-00000002"
