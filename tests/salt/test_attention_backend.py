"""The choice of attention's kernel, its report, and the memory handed to it without a copy."""

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from salt.acceleration import attention_backend
from salt.acceleration.attention_backend import (
    BACKENDS,
    DIFFUSERS_NAMES,
    EXACT_ERROR,
    SAGE_ERROR,
    Card,
    attention_error,
    card_of,
    choose,
    installed_backends,
    trial_fault,
    why_not,
)
from salt.cli import main
from salt.errors import InputError
from salt.memory import MemoryPolicy
from salt.models import attention
from salt.pipeline import SaltPipeline

ALL = frozenset(BACKENDS)
CPU, TURING, AMPERE, ADA = Card("cpu"), Card("T4", (7, 5)), Card("A100", (8, 0)), Card("RTX 4090", (8, 9))
HOPPER, BLACKWELL, CONSUMER = Card("H100", (9, 0)), Card("B200", (10, 0)), Card("RTX 5090", (12, 0))
CLIP = dict(num_frames=33, seed=3, num_inference_steps=2, memory_policy="sink:3,window:9")


@pytest.mark.parametrize(
    ("card", "installed", "expected", "approximate"),
    [
        (CPU, ALL, "sdpa", "sdpa"),
        (TURING, ALL, "sdpa", "sdpa"),
        (AMPERE, ALL, "fa2", "sage"),
        (AMPERE, ALL - {"fa2", "sage"}, "sdpa", "sdpa"),
        (ADA, ALL, "fa2", "sage"),
        (HOPPER, ALL, "fa3", "sage"),
        (HOPPER, ALL - {"fa3"}, "cudnn", "sage"),
        (HOPPER, {"fa2", "sdpa"}, "fa2", "fa2"),
        (HOPPER, {"sdpa"}, "sdpa", "sdpa"),
        (BLACKWELL, ALL, "cudnn", "cudnn"),
        (CONSUMER, ALL, "cudnn", "sage"),
    ],
    ids=lambda value: value.name if isinstance(value, Card) else None,
)
def test_the_choice_by_card_and_packages(card, installed, expected, approximate):
    assert choose(card, frozenset(installed), torch.bfloat16, 128)[0] == expected
    assert choose(card, frozenset(installed), torch.bfloat16, 128, approximate=True)[0] == approximate
    assert choose(card, frozenset(installed), torch.float32, 128, approximate=True) == ("sdpa",)


@pytest.mark.parametrize(
    ("name", "card", "head_dim", "reason"),
    [
        ("fa3", CPU, 128, "it needs an NVIDIA GPU, and the device is cpu"),
        ("fa3", ADA, 128, "it does not support RTX 4090 (compute capability 8.9)"),
        ("fa2", TURING, 128, "it does not support T4 (compute capability 7.5)"),
        ("sage", ADA, 32, "it has heads of 64, 96 or 128, and the student has 32"),
        ("cudnn", AMPERE, 256, "it has heads of at most 128, in multiples of 8, and the student has 256"),
        ("fa2", ADA, 20, "it has heads of at most 256, in multiples of 8, and the student has 20"),
    ],
)
def test_why_a_back_end_is_not_chosen(name, card, head_dim, reason):
    assert why_not(name, card, ALL, torch.float16, head_dim) == reason
    assert name not in choose(card, ALL, torch.float16, head_dim, approximate=True)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_back_end_that_runs_here_equals_plain_attention(name):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if fault := why_not(name, card_of(device), installed_backends(), dtype, 64):
        pytest.skip(fault)
    q, k, v = (torch.randn(2, n, 3, 64, generator=torch.Generator().manual_seed(n)) for n in (120, 300, 301))
    error = attention_error(name, q.to(device, dtype), k.to(device, dtype), v[:, :300].to(device, dtype))
    assert error < (1e-6 if dtype == torch.float32 else SAGE_ERROR if name == "sage" else EXACT_ERROR)


def test_a_back_end_that_fails_or_is_wrong_is_passed_over(monkeypatch):
    """An FA3 built for another torch, and a cuDNN that leaves out the last key: the next one is used."""

    def broken(q, k, v, backend):
        if backend == DIFFUSERS_NAMES["fa3"]:
            raise RuntimeError("no kernel image is available\nfor execution")
        last = -1 if backend == DIFFUSERS_NAMES["cudnn"] else None
        return attention.dispatch_attention_fn(q, k[:, :last], v[:, :last])

    monkeypatch.setattr(attention_backend, "attend", broken)
    monkeypatch.setattr(attention_backend, "card_of", lambda device: HOPPER)
    monkeypatch.setattr(attention_backend, "installed_backends", lambda: ALL)
    cpu, student = torch.device("cpu"), SaltPipeline.tiny().transformer
    trial_fault.cache_clear()
    try:
        assert trial_fault("fa3", cpu, torch.bfloat16, 64) == "a trial fails: no kernel image is available"
        fault = trial_fault("cudnn", cpu, torch.bfloat16, 64)
        assert fault is not None and fault.startswith("a trial is wrong by")
        choice = attention_backend.set_attention(student, "auto", cpu, torch.bfloat16, 64, approximate=False)
        assert choice.name == "fa2" and choice.reason == "the first that works on H100 in bfloat16"
        with pytest.raises(InputError, match="attention: found cudnn, which cannot be used: a trial is wrong"):
            attention_backend.set_attention(student, "cudnn", cpu, torch.bfloat16, 64, approximate=False)
    finally:
        trial_fault.cache_clear()


def test_the_pipeline_reports_its_kernel_and_keeps_the_users(capsys, tmp_path):
    pipe = SaltPipeline.tiny()
    assert (pipe.attention.name, pipe.attention.reason) == ("sdpa", "the first that works on cpu in float32")
    assert pipe.components_in_use().attention == pipe.attention
    pipe.set_attention("sdpa")
    assert pipe.attention.reason == "as asked for"
    pipe.set_attention("auto")
    pipe.transformer.blocks[0].attn1.processor._attention_backend = AttentionBackendName._NATIVE_MATH
    assert pipe.attention.name == "_native_math", "as `transformer.set_attention_backend` does"
    for name, problem in (("fa3", "found fa3, which cannot be used: it needs an NVIDIA GPU"), ("fast", "found 'fast'")):
        with pytest.raises(InputError, match=f"attention: {problem}"):
            pipe.set_attention(name)
    assert main(["generate", "circle", "--attention", "cudnn", "-o", str(tmp_path / "a.mp4")]) == 2
    assert "--attention: found cudnn, which cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("name", BACKENDS)
def test_the_memory_is_read_where_it_lies(monkeypatch, name):
    """What FA3, FA2 and Sage get is a view of the cache [B, S, N, D]; SDPA and cuDNN get that view turned."""
    pipe, seen = SaltPipeline.tiny(), []

    def own(query, key, value):
        seen.append((key, value))
        return plain(query, key, value, backend=AttentionBackendName.NATIVE)

    def of_torch(query, key, value, **options):
        seen.append((key.permute(0, 2, 1, 3), value.permute(0, 2, 1, 3)))
        return scaled(query, key, value, **options)

    plain, scaled = attention.dispatch_attention_fn, torch.nn.functional.scaled_dot_product_attention
    if name in ("sdpa", "cudnn"):
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", of_torch)
        monkeypatch.setattr(attention, "sdpa_kernel", lambda backend: torch.no_grad())  # a CPU has no cuDNN
    else:
        monkeypatch.setitem(_AttentionBackendRegistry._backends, DIFFUSERS_NAMES[name], own)
        names = {"query", "key", "value"}
        monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, DIFFUSERS_NAMES[name], names)
    for block in pipe.transformer.blocks:
        block.attn1.processor._attention_backend = DIFFUSERS_NAMES[name]
    memory = pipe("a red circle", output_type="latent", **CLIP).memory
    assert memory.policy == MemoryPolicy("sink", 9, 3)
    addresses = {t.data_ptr() for layer in memory.store.buffers for t in layer}
    full = [pair for pair in seen if pair[0].shape[1] == 9 * memory.geometry.tokens]
    assert len(full) > len(memory.store.buffers)
    assert {t.data_ptr() for pair in full for t in pair} == addresses
