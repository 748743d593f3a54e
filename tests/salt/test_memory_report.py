"""What a memory's report says is what is in it."""

import torch

from salt.memory import KVMemory, MemoryGeometry, MemoryPolicy
from salt.memory.report import as_text, lost_by_rewinding, norms, picture, ranges, slots

GEOMETRY = MemoryGeometry(layers=2, heads=2, head_dim=8, height=2, width=2)


@torch.no_grad()
def written(policy: str, blocks: int) -> KVMemory:
    """Keys of frame f, layer l, are f + 1 + 100 l everywhere; values are twice that."""
    memory = KVMemory(MemoryPolicy.parse(policy), GEOMETRY)
    for block in range(blocks):
        passing = memory.open(write=3)
        frames = torch.arange(3 * block + 1, 3 * block + 4).float().repeat_interleave(4)
        for layer in range(2):
            k = (frames + 100 * layer)[None, :, None, None].expand(1, 12, 2, 8).contiguous()
            passing.attend(layer, k, k, 2 * k, lambda q, k, v: q)
        passing.commit()
    return memory


def test_slots_and_norms_are_those_of_the_held_frames():
    memory = written("relative:3,window:7", 4)
    found = slots(memory)
    assert sorted(s.frame for s in found if s.frame is not None) == sorted(memory.held)
    assert [s.frame for s in found if s.kind == "sink"] == [0, 1, 2]
    assert sum(s.kind == "empty" for s in found) == 7 - len(memory.held)
    values = norms(memory)
    expected = torch.tensor([f + 1.0 for f in memory.held]) * 8**0.5  # relative memories keep keys without RoPE
    torch.testing.assert_close(values[0, 0], expected)
    torch.testing.assert_close(values[1, 1], 2 * (expected + 100 * 8**0.5))


def test_the_text_and_the_picture_tell_of_it():
    memory = written("window:6", 3)
    text = as_text(memory)
    assert "window:6" in text and "6 latent frames (3-8)" in text and "latent frame 9 (2.25 s)" in text
    image = picture(memory)
    assert image.shape[1:] == (768, 3) and 0 <= image.min() and image.max() <= 1
    assert len(image.reshape(-1, 3).unique(dim=0)) > 6
    assert (
        "none" in as_text(KVMemory(MemoryPolicy(), GEOMETRY)) and picture(KVMemory(MemoryPolicy(), GEOMETRY)).ndim == 3
    )


def test_what_a_rewind_cannot_bring_back_is_told():
    assert lost_by_rewinding(written("full", 4), 6) == []
    assert lost_by_rewinding(written("window:6", 4), 9) == [3, 4, 5]
    assert ranges([0, 1, 2, 6, 7, 9]) == "0-2, 6-7, 9"
