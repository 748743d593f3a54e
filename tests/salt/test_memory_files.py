"""Memory on disk: round trip, extension from a file, and files that do not fit."""

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from salt.memory import (
    PRECISIONS,
    KVMemory,
    MemoryFileError,
    MemoryGeometry,
    MemoryPolicy,
    load_memory,
    read_memory_info,
    save_memory,
)
from tests.helpers import golden
from tests.helpers.small_memory import GEOMETRY, POLICIES, dense, write


def filled(policy, blocks=5):
    memory = KVMemory(policy, GEOMETRY, fingerprint="abc")
    with torch.no_grad():
        for _ in range(blocks):
            write(memory)
    return memory


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@torch.no_grad()
def test_round_trip_is_exact(tmp_path, policy, precision):
    memory = filled(policy.with_storage(precision))
    save_memory(memory, tmp_path / "m.safetensors")
    loaded = load_memory(tmp_path / "m.safetensors", fingerprint="abc", geometry=GEOMETRY)
    assert (loaded.held, loaded.next_frame, loaded.origin) == (memory.held, memory.next_frame, memory.origin)
    q, k, v = torch.randn(3, 1, 6, 2, 8)
    for layer in range(2):
        here = memory.open(read=3).attend(layer, q, k, v, dense)
        assert torch.equal(here, loaded.open(read=3).attend(layer, q, k, v, dense))


def test_metadata_describes_the_memory(tmp_path):
    memory = filled(MemoryPolicy("sink", 12, 3))
    memory.context_sigma = 0.005
    save_memory(memory, tmp_path / "m.safetensors")
    info = read_memory_info(tmp_path / "m.safetensors")
    assert info["policy"]["window"] == 12 and info["geometry"]["heads"] == 2 and info["fingerprint"] == "abc"
    assert info["held"] == [0, 1, 2, *range(6, 15)]
    assert info["context_sigma"] == 0.005


def test_errors_name_the_differing_field(tmp_path):
    path = tmp_path / "m.safetensors"
    save_memory(filled(MemoryPolicy()), path)
    with pytest.raises(MemoryFileError, match="m.safetensors: fingerprint differs: found abc, expected xyz"):
        load_memory(path, fingerprint="xyz")
    with pytest.raises(MemoryFileError, match=r"width differs: found 2 \(32 pixels\), expected 4 \(64 pixels\)"):
        load_memory(path, geometry=MemoryGeometry(2, 2, 8, 1, 4))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MemoryFileError, match="no such file"):
        load_memory(tmp_path / "none.safetensors")
    with pytest.raises(MemoryFileError, match="found format None"):
        load_memory(golden.GOLDEN / "tiny_a.safetensors")
    whole = tmp_path / "whole.safetensors"
    save_memory(filled(MemoryPolicy()), whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(MemoryFileError, match="cut short"):
        load_memory(tmp_path / "cut.safetensors")


def test_a_tensor_that_is_missing_or_misshapen(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_memory(filled(MemoryPolicy()), whole)
    tensors = load_file(whole)
    with safe_open(whole, framework="pt") as file:
        metadata = file.metadata()
    del tensors["layers.1.v"]
    save_file(tensors, tmp_path / "less.safetensors", metadata=metadata)
    with pytest.raises(MemoryFileError, match="layers.1.v: found nothing"):
        load_memory(tmp_path / "less.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_memory(filled(MemoryPolicy()), path)
    before = path.read_bytes()

    def full_disk(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_memory(filled(MemoryPolicy(), 6), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_safetensors_error_names_the_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise SafetensorError("Error while serializing: I/O error")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with pytest.raises(OSError, match=r"m.safetensors: cannot be written \(Error while"):
        save_memory(filled(MemoryPolicy()), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_file_has_the_mode_of_any_new_file(tmp_path):
    save_memory(filled(MemoryPolicy()), tmp_path / "m.safetensors")
    (tmp_path / "new").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_an_empty_memory_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="memory is empty"):
        save_memory(KVMemory(MemoryPolicy(), GEOMETRY), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
