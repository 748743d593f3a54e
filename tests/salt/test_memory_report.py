"""The report on a memory agrees with its content."""

import torch

from salt.memory import KVMemory, MemoryGeometry, MemoryPolicy
from salt.memory.inspect import as_text, blended_since, lost_by_rewinding, norms, picture, ranges, slots, slots_as_text

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
        memory.commit(passing)
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


def test_text_and_picture_of_a_report():
    memory = written("window:6", 3)
    text = as_text(memory, 16)
    assert "window:6" in text and "6 latent frames (3-8)" in text and "latent frame 9 (2.25 s)" in text
    assert "latent frame 9 (1.5 s)" in as_text(memory, 24)
    image = picture(memory)
    assert image.shape[1:] == (768, 3) and 0 <= image.min() and image.max() <= 1
    assert len(image.reshape(-1, 3).unique(dim=0)) > 6
    assert (
        "none" in as_text(KVMemory(MemoryPolicy(), GEOMETRY), 16)
        and picture(KVMemory(MemoryPolicy(), GEOMETRY)).ndim == 3
    )


def test_slots_are_listed_with_their_frames():
    assert slots_as_text(written("sink:3,window:6", 4)) == "sink 0 1 2, then 9 10 11"
    assert slots_as_text(written("window:7", 3)) == "7 8 2 3 4 5 6", "frame f lies in slot f mod 7"
    assert slots_as_text(written("window:7", 2)) == "0 1 2 3 4 5 -"
    assert "slots             none" in as_text(KVMemory(MemoryPolicy(), GEOMETRY), 16)
    assert max(map(len, as_text(written("full", 30), 16).splitlines())) <= 96


def test_the_strip_encodes_frame_numbers():
    """Slots of the same kind with other frames look different, at any cell width."""
    one, two = (picture(written("window:6", blocks))[:32] for blocks in (3, 5))
    assert not torch.equal(one, two)
    many = picture(written("window:120", 40))[:32]  # cells of 6 pixels, all of them blue
    dark = (many.amax(-1) < 0.45).any(0).nonzero().flatten()
    assert len(dark) and dark.max() - dark.min() > 600, "numbers from end to end"
    assert (many.amax(-1) > 0.85).any(0).float().mean() > 0.9, "and room between them"


def test_frames_lost_in_a_rewind_are_listed():
    assert lost_by_rewinding(written("full", 4), 6) == []
    assert lost_by_rewinding(written("window:6", 4), 9) == [3, 4, 5]
    assert ranges([0, 1, 2, 6, 7, 9]) == "0-2, 6-7, 9"


def test_a_blended_sink_lists_the_blended_frames():
    assert blended_since(written("relative:3,window:6", 4), 3) == []
    memory = written("blended:3,window:6", 4)
    assert memory.held == (0, 1, 2, 9, 10, 11)
    assert blended_since(memory, 3) == [3, 4, 5, 6, 7, 8] and lost_by_rewinding(memory, 3) == []
    assert blended_since(memory, 9) == [6, 7, 8] and blended_since(memory, 12) == []
    fresh = norms(written("blended:3,window:6", 1))
    memory.trim(3)
    assert not torch.allclose(norms(memory), fresh, rtol=1e-2), "a rewind leaves them in the sink"
    assert blended_since(memory, 3) == []
