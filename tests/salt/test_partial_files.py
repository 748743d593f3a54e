"""Hidden files of runs that were killed, links as targets, and the rules of systems that do not flush folders."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from salt.io.atomic import atomic_folder, atomic_write, write_tensors, write_text
from salt.io.partial_files import RUN, new_partial, remove_leftovers_below
from salt.io.video import PARTIAL_ENDING, VideoWriter
from train.distributed.checkpointing import CheckpointFolder

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(scope="module")
def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def of_process(partial, number, run=RUN):
    """The same name as another process would have chosen it."""
    return partial.with_name(partial.name.replace(f"-{os.getpid()}-{RUN}", f"-{number}-{run}"))


@pytest.mark.parametrize("ending", [".part", PARTIAL_ENDING])
def test_the_next_write_removes_what_dead_processes_left(tmp_path, dead_process, ending):
    path = tmp_path / "a.mp4"
    mine, other = new_partial(path, ending), new_partial(tmp_path / "b.a.mp4", ending)
    dead, indexed = of_process(mine, dead_process), of_process(mine.with_name(mine.name + ".indexed.mp4"), dead_process)
    earlier = of_process(mine, os.getpid(), run="0000" if RUN != "0000" else "1111")
    alive, elsewhere = of_process(mine, os.getppid()), of_process(other, dead_process)
    for file in (mine, dead, indexed, earlier, alive, elsewhere):
        file.write_text("begun")
    new_partial(path, ending)
    assert set(tmp_path.iterdir()) == {mine, alive, elsewhere}


def test_files_of_another_machine_are_removed_after_a_day(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    monkeypatch.setattr("salt.io.partial_files.platform.node", lambda: "another")
    new, old = new_partial(path, ".part"), new_partial(path, ".part")
    monkeypatch.undo()
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    write_text(path, "whole")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, new.name}


def test_leftovers_of_any_name_below_a_folder(tmp_path, dead_process):
    (tmp_path / "2026").mkdir()
    targets = [tmp_path / "a.safetensors", tmp_path / "2026" / "b_00001_.safetensors"]
    mine = [new_partial(path, ".part") for path in targets]
    for folder in [*mine, *(of_process(folder, dead_process) for folder in mine)]:
        folder.mkdir()
        (folder / "half.safetensors").write_text("begun")
    (tmp_path / ".a.part").write_text("another program's")
    remove_leftovers_below(tmp_path)
    assert set(tmp_path.rglob(".*")) == {*mine, tmp_path / ".a.part"}


def test_every_writer_removes_the_leftovers_of_its_target(tmp_path, dead_process):
    targets = [("x", ".partial"), ("v.mp4", PARTIAL_ENDING), ("t", ".part")]
    left = [of_process(new_partial(tmp_path / name, ending), dead_process) for name, ending in targets]
    left[0].mkdir()
    for file in (left[0] / "a.pt", *left[1:]):
        file.touch()
    with atomic_folder(tmp_path / "x") as folder:
        (folder / "a").touch()
    with VideoWriter(tmp_path / "v.mp4") as video:
        video.write(torch.zeros(3, 1, 16, 16))
    write_text(tmp_path / "t", "")
    assert {p.name for p in tmp_path.iterdir()} == {"x", "v.mp4", "t"}


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "x") as folder:
        (folder / "a").write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, exists):
    target, link, video = tmp_path / "there" / "real.mp4", tmp_path / "link.mp4", tmp_path / "video.mp4"
    target.parent.mkdir()
    if exists:
        target.write_text("older")
    link.symlink_to(target)
    write_text(link, "newer")
    assert link.is_symlink() and target.read_text() == "newer"
    video.symlink_to(target.with_name("clip.mp4"))
    with VideoWriter(video) as writer:
        writer.write(torch.zeros(3, 1, 16, 16))
    assert video.is_symlink() and target.with_name("clip.mp4").read_bytes()[4:8] == b"ftyp"
    assert {p.name for p in target.parent.iterdir()} == {"real.mp4", "clip.mp4"}


def windows_fsync(handle):
    """Windows flushes what is open for writing, and no folders."""
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")


def windows_open(path, flags, *more):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied")
    return real_open(path, flags, *more)


real_open = os.open


@pytest.mark.parametrize("rules", [{"fsync": windows_fsync}, {"fsync": windows_fsync, "open": windows_open}])
def test_files_and_folders_are_written_under_windows_rules(tmp_path, monkeypatch, rules):
    for name, rule in rules.items():
        monkeypatch.setattr(os, name, rule)
    write_text(tmp_path / "a.txt", "text")
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    folder.save(1, {"a": {"x": torch.ones(1)}})
    parts = folder.latest()
    assert (tmp_path / "a.txt").read_text() == "text" and parts is not None and parts["a"]["x"] == 1


def test_a_disk_that_fails_is_not_taken_for_windows(tmp_path, monkeypatch):
    def broken(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"), atomic_write(tmp_path / "a") as partial:
        partial.touch()
    with pytest.raises(OSError, match="Input/output error"), atomic_folder(tmp_path / "b"):
        pass


def test_temporary_files_of_safetensors_lie_in_the_hidden_folder(tmp_path, monkeypatch):
    """It writes beside the file that it is given, under a name of its own, which a kill leaves behind."""
    seen = []

    def beside(tensors, name, metadata):
        (Path(name).parent / ".tmpA1b2C3").touch()
        seen.extend(p.name for p in tmp_path.iterdir())
        Path(name).write_bytes(b"whole")

    monkeypatch.setattr("safetensors.torch.save_file", beside)
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    assert len(seen) == 1 and seen[0].startswith(".a.safetensors.") and seen[0].endswith(".part")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
