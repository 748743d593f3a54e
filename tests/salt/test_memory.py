"""KV memory: the frames and positions that each policy keeps, storage precisions, and operations."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from salt.conditioning import Conditioning
from salt.memory import PRECISIONS, KVMemory, MemoryGeometry, MemoryPolicy, estimate_bytes, pinned_store
from salt.memory.quantization import dequantise_into, quantise, row_layout
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from tests.helpers import golden
from tests.helpers.small_memory import GEOMETRY, POLICIES, dense, write, written


def seen(memory, frames=3):
    """Keys that a block of `frames` attends to at layer 0, its own included, and their number."""
    shapes = []

    def spy(q, k, v):
        shapes.append(k.detach().clone())
        return dense(q, k, v)

    g = memory.geometry
    q = torch.randn(g.batch, frames * g.tokens, g.heads, g.head_dim)
    memory.open(read=frames).attend(0, q, q, q, spy)
    return shapes[0]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@torch.no_grad()
def test_kept_frames(policy):
    memory = written(policy, 8)
    keys = seen(memory)
    window = policy.window or 27
    assert keys.shape[1] == window * GEOMETRY.tokens
    kept = memory.held  # what remains once the next block is written
    sinks = tuple(range(policy.sink))
    assert kept == sinks + tuple(range(24 - (window - 3 - policy.sink), 24))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@torch.no_grad()
def test_denoising_does_not_change_the_memory(policy):
    memory = written(policy, 5)
    memory.open(read=3)  # opening a block evicts
    held, before = memory.held, [memory.store.gather(0, memory.slot_index(memory.held))[0].clone()]
    for _ in range(3):
        seen(memory)
    assert memory.held == held and memory.next_frame == 15
    assert torch.equal(memory.store.gather(0, memory.slot_index(held))[0], before[0])


@torch.no_grad()
def test_reading_is_a_view_not_a_copy():
    memory = written(MemoryPolicy("sink", 12, 3), 8)
    pointers = []

    def spy(q, k, v):
        pointers.append(k.untyped_storage().data_ptr())
        return dense(q, k, v)

    q = torch.randn(1, 6, 2, 8)
    memory.open(read=3).attend(1, q, q, q, spy)
    assert pointers == [memory.store.buffers[1][0].untyped_storage().data_ptr()]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_reading_with_gradient_equals_reading_in_place(policy):
    torch.manual_seed(0)
    memory = KVMemory(policy, GEOMETRY)
    with torch.no_grad():
        for _ in range(6):
            write(memory)
    q, k, v = torch.randn(3, 1, 6, 2, 8)
    with torch.no_grad():
        in_place = memory.open(read=3).attend(0, q, k, v, dense)
    with_gradient = memory.open(read=3).attend(0, q.requires_grad_(), k, v, dense)
    assert with_gradient.requires_grad
    assert torch.allclose(in_place, with_gradient, atol=1e-6)


@torch.no_grad()
def test_cyclic_positions():
    policy = MemoryPolicy("cyclic", 9)
    starts = {t: policy.block_positions(t, 3, 6).start for t in (0, 3, 18, 19, 20, 21, 24, 39, 42)}
    assert starts == {0: 0, 3: 3, 18: 18, 19: 18, 20: 18, 21: 0, 24: 3, 39: 18, 42: 0}


@torch.no_grad()
def test_relative_positions_are_reassigned():
    policy = MemoryPolicy("relative", 9, 1)
    assert list(policy.block_positions(300, 3, 6)) == [6, 7, 8]
    memory = written(policy, 7)
    (segment,) = memory.open(read=3).segments
    from salt.rope import rotary_table

    kept = sorted(memory.held, key=memory.slot)
    rank = {f: i for i, f in enumerate(sorted(memory.held))}
    expected = rotary_table([rank[f] for f in kept] + [6, 7, 8], 1, 2, 8)
    assert torch.equal(segment.joined_rotary.cos, expected.cos)


@torch.no_grad()
def test_blended_sink_averages_evicted_frames():
    memory = KVMemory(MemoryPolicy("blended", 9, 3, blend=0.75), GEOMETRY)
    for value in (1.0, 2.0, 3.0):
        write(memory, value=value)
    # The fourth block evicts frames 3..5, which hold 2.0.
    memory.open(read=3)
    sink_k, sink_v = memory.store.gather(1, memory.slot_index([0, 1, 2]))
    assert torch.allclose(sink_k, torch.full_like(sink_k, 1.25)) and torch.allclose(sink_v, sink_k)
    memory.open(read=3)  # a second step of the same block evicts nothing more
    assert torch.equal(memory.store.gather(1, memory.slot_index([0]))[0], sink_k[:, :2])


def dequantised(like, codes, scale, precision):
    out = torch.empty_like(like)
    dequantise_into(out, codes, scale, precision)
    return out


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_quantised_rows_are_close(precision):
    x = torch.randn(2, 5, 3, 64) * torch.tensor([0.01, 1.0, 100.0]).view(1, 1, 3, 1)
    x[0, 0] = 0
    codes, scale = quantise(x, precision)
    stored, scales, _ = row_layout(precision, 64)
    assert codes.dtype.itemsize == 1 and codes.shape == (2, 5, 3, stored) and scale.shape == (2, 5, 3, scales)
    back = dequantised(x, codes, scale, precision)
    errors = (back - x).flatten(0, 1).norm(dim=(0, 2)) / x.flatten(0, 1).norm(dim=(0, 2))
    assert errors.max() < {"int8": 0.01, "fp8": 0.04, "int4": 0.1}[precision]
    assert (back[0, 0] == 0).all()


def test_int4_keeps_group_maxima_and_refuses_odd_heads():
    x = torch.randn(4, 64)
    x[:, 5], x[:, 40] = 100.0, -50.0
    back = dequantised(x, *quantise(x, "int4"), "int4")
    assert torch.allclose(back[:, [5, 40]], x[:, [5, 40]], rtol=1e-3)
    with pytest.raises(ValueError, match="needs a head_dim that is a multiple of 64, found 96"):
        row_layout("int4", 96)


@torch.no_grad()
def test_precision_sizes_and_their_effect_on_a_golden_rollout():
    student, errors = golden.student(), {}
    policy = MemoryPolicy("sink", 12, 3)
    expected = golden.expected("sink3_window12")
    for precision in PRECISIONS:
        made = golden.play(student, "sink3_window12", policy.with_storage(precision))
        errors[precision] = golden.relative_error(made, expected)
    print("relative error of the golden rollout:", {k: f"{v:.2e}" for k, v in errors.items()})
    assert errors["model"] < 5e-5 < errors["int8"] < errors["fp8"] < errors["int4"] < 0.4
    assert errors["int8"] < 0.02
    geometry = MemoryGeometry(30, 12, 128, 30, 52)
    sizes = {p: estimate_bytes(policy.with_storage(p), geometry, torch.bfloat16) for p in PRECISIONS}
    assert sizes["model"] == 12 * 287_539_200  # memory.md: 287.5 MB per latent frame at 832x480
    assert sizes["int8"] <= 0.55 * sizes["model"] and sizes["fp8"] == sizes["int8"]
    assert sizes["int4"] <= 0.29 * sizes["model"]
    fourteen = MemoryGeometry(40, 40, 128, 30, 52)
    assert estimate_bytes(policy.with_storage("int8"), fourteen, torch.bfloat16) <= 8.2e9
    assert estimate_bytes(policy.with_storage("int4"), fourteen, torch.bfloat16) <= 4.4e9


@torch.no_grad()
def test_size_before_and_after_allocation():
    for policy in POLICIES:
        for precision in PRECISIONS:
            memory = KVMemory(policy.with_storage(precision), GEOMETRY, frames=21)
            assert memory.nbytes == 0
            write(memory)
            assert memory.nbytes == memory.estimate_bytes(21)


@torch.no_grad()
def test_windowed_memory_stays_at_its_window_and_full_memory_grows():
    windowed, full = KVMemory(MemoryPolicy("sink", 12, 3), GEOMETRY), KVMemory(MemoryPolicy(), GEOMETRY)
    sizes = []
    for _ in range(60):
        write(windowed)
        write(full)
        sizes.append(windowed.nbytes)
    assert sizes == sorted(sizes) and set(sizes[4:]) == {windowed.estimate_bytes(21)}, "it grows up to its window"
    assert seen(full).shape[1] == 183 * GEOMETRY.tokens


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@torch.no_grad()
def test_fork_shares_nothing_mutable(policy):
    memory = written(policy, 4)
    branch = memory.fork()
    held = memory.held
    before = memory.store.gather(0, memory.slot_index(held))[0].clone()
    for _ in range(3):
        write(branch)
    assert memory.held == held and memory.next_frame == 12 and branch.next_frame == 21
    assert torch.equal(memory.store.gather(0, memory.slot_index(held))[0], before)


@torch.no_grad()
def test_the_same_blocks_after_a_rewind_give_the_same_clip():
    student = golden.student()
    model, text = CausalModel(student), Conditioning(torch.randn(1, 12, 64))
    latents = torch.randn(1, 16, 15, 4, 6)
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)

    def advance(k):
        here = latents[:, :, k : k + 3]
        out = model(ModelInput(here, torch.full((1, 3), 500.0), text, memory.open(read=3)))
        passing = memory.open(write=3)
        model(ModelInput(here, torch.zeros(1, 3), text, passing))
        memory.commit(passing)
        return out

    first = [advance(k) for k in (0, 3, 6, 9, 12)]
    memory.trim(6)
    assert memory.held == tuple(range(6))
    again = [advance(k) for k in (6, 9, 12)]
    assert all(torch.equal(a, b) for a, b in zip(first[2:], again, strict=True))
    with pytest.raises(ValueError, match="found 99, expected 0 to 15"):
        memory.trim(99)


@torch.no_grad()
def test_frames_lost_in_a_rewind_are_not_read():
    memory = written(MemoryPolicy("window", 9), 7)
    memory.trim(15)
    assert memory.held == (12, 13, 14)
    assert seen(memory).shape[1] == 6 * GEOMETRY.tokens


@torch.no_grad()
def test_cut_starts_new_sinks_at_its_frame():
    memory = written(MemoryPolicy("sink", 9, 3), 4)
    memory.cut()
    assert memory.held == () and memory.next_frame == 12
    for _ in range(5):
        write(memory)
    assert memory.held[:3] == (12, 13, 14)


@torch.no_grad()
def test_interrupted_forward_leaves_a_usable_memory():
    memory = written(MemoryPolicy("sink", 9, 3), 5)
    passing = memory.open(write=3, read=3)  # fused; the forward fails half way through
    q = torch.randn(1, 12, 2, 8)
    passing.attend(0, q, q, q, dense)
    assert memory.next_frame == 15 and set(memory.held) == {0, 1, 2}
    write(memory)
    assert memory.held == (0, 1, 2, 15, 16, 17)
    assert seen(memory).shape[1] == 9 * GEOMETRY.tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="ring"), "kind: found 'ring'"),
        (dict(kind="window"), "window: found None"),
        (dict(window=9), "window: found 9, expected no window for kind full"),
        (dict(kind="window", window=9, sink=3), "sink: found 3, expected 0 for kind window"),
        (dict(kind="sink", window=3, sink=3), "window: found 3, expected more than the sink's 3"),
        (dict(kind="blended", window=9), "sink: found 0, expected at least 1"),
        (dict(precision="int3"), "precision: found 'int3'"),
        (dict(kind="blended", window=9, sink=3, blend=1.5), "blend: found 1.5"),
        (dict(kind="sink", window=9, sink=3, shot_offset=8), "shot_offset: found 8, expected 0 for kind sink"),
        (dict(kind="shots", window=9, sink=3, shot_offset=-1), "shot_offset: found -1, expected 0 to 1000"),
        (dict(kind="full", clean_shots=True), "clean_shots: found it with kind full"),
    ],
)
def test_bad_policies_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        MemoryPolicy(**fields)


def test_a_block_larger_than_the_window():
    with pytest.raises(ValueError, match="window: found 4, expected at least 6"):
        KVMemory(MemoryPolicy("sink", 4, 3), GEOMETRY).open(read=3)
    with pytest.raises(ValueError, match="expected at least 9 .sink 3 \\+ 3 of a shot \\+ a block of 3"):
        KVMemory(MemoryPolicy("shots", 8, 3), GEOMETRY).open(read=3)


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "window:9",
        "sink:3,window:12",
        "relative:1,window:9",
        "cyclic:21",
        "blended:3,window:12,blend:0.8",
        "sink:3,window:12,int8,cpu",
        "shots:8,window:32,offset:8",
        "shots:2,window:8,offset:0,clean,int8",
        "sink:3,window:12,int4",
    ],
)
def test_policies_read_as_they_are_written(text):
    assert str(MemoryPolicy.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ring",
        "window",
        "window:x",
        "sink:3;window:12",
        "cyclic:6,sink:3",
        "window:3,window:6",
        "window:²",
        "sink:²,window:9",
        "window:" + "9" * 5000,
    ],
)
def test_unreadable_policies_show_the_forms(text):
    with pytest.raises(ValueError, match="expected one of full \\| window:W|window: found None"):
        MemoryPolicy.parse(text)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_memory_on_the_cpu_reads_as_one_on_the_device(precision):
    """Prefetched layer by layer through pinned memory, the same keys and values arrive."""
    torch.manual_seed(0)
    geometry = MemoryGeometry(layers=4, heads=2, head_dim=64, height=4, width=4)
    policy = MemoryPolicy("sink", 12, 3, precision=precision)
    near, far = (
        KVMemory(policy.with_storage(precision, home), geometry, torch.float16, "cuda") for home in ("device", "cpu")
    )
    for _ in range(6):
        passes = near.open(write=3), far.open(write=3)
        for layer in range(4):
            q, k, v = torch.randn(3, 1, 48, 2, 64, dtype=torch.float16, device="cuda")
            a, b = (p.attend(layer, q, k, v, dense) for p in passes)
            assert torch.allclose(a, b, atol=2e-3)
        for memory, memory_pass in zip((near, far), passes, strict=True):
            memory.commit(memory_pass)
    assert far.store.buffers[0][0].device.type == "cpu" and near.store.buffers[0][0].device.type == "cuda"


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_an_offloaded_memory_copies_every_layer_once_in_a_fused_pass(precision, monkeypatch):
    """With dummy streams, two blocks in one forward read as from a memory on the device, each layer once."""
    event = SimpleNamespace(record=lambda stream: None, wait=lambda stream: None)
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    for name, stand_in in (("stream", nullcontext), ("Event", lambda: event), ("current_stream", lambda device: None)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(pinned_store, "side_stream", lambda device, work: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: None)
    geometry = MemoryGeometry(layers=4, heads=2, head_dim=64, height=1, width=2, batch=2)
    near, far = (
        KVMemory(MemoryPolicy("sink", 12, 3, precision=precision, residence=home), geometry)
        for home in ("device", "cpu")
    )
    store = far.store = pinned_store.PinnedStore(far.policy, geometry, far.dtype, far.device, 12)
    fetched, fetch = [], store._fetch
    monkeypatch.setattr(store, "_fetch", lambda layer, *rest: fetched.append(layer) or fetch(layer, *rest))
    for _ in range(4):
        passes = [memory.open(write=3, read=3) for memory in (near, far)]
        for layer in range(4):
            q, k, v = torch.randn(3, 2, 12, 2, 64)
            a, b = (p.attend(layer, q, k, v, dense) for p in passes)
            assert torch.allclose(a, b, atol=1e-5)
        for memory, memory_pass in zip((near, far), passes, strict=True):
            memory.commit(memory_pass)
    assert sorted(fetched) == sorted([0, 1, 2, 3] * 2 * 4)
