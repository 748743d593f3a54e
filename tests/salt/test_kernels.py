"""Fused kernels beside their plain twins, under Triton's interpreter on the CPU; and which kernels a transformer uses.

No GPU has run them: `salt selftest` compares them there (tests/salt/test_selftest.py), and the first run tries them.
"""

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from salt.acceleration.attention_backend import Card
from salt.acceleration.kernels import choice, launching
from salt.acceleration.kernels.chosen import NO_KERNELS, Kernels
from salt.acceleration.presets import PREFERENCES
from salt.memory import PRECISIONS, MemoryPolicy
from salt.models import modulation
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.pipeline import SaltPipeline
from tests.helpers import kernel_cases

ROOT = Path(__file__).resolve().parents[2]
AMPERE = Card("an A100", (8, 0))
X = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
PRECISE = torch.rms_norm(X.float(), (64,), X[0].float(), 1e-6)
ONCE = torch.equal(torch.rms_norm(X, (64,), X[0], 1e-6), PRECISE.bfloat16())
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it is on Linux x86_64)")


def compared(names):
    """What `kernel_cases` finds, by case: (result, whether it is stored, ulps, error, share of unequal numbers)."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.helpers.kernel_cases", *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def some():
    return compared(kernel_cases.SOME)


@needs_triton
@pytest.mark.parametrize("name", kernel_cases.SOME)
def test_kernels_equal_their_twins(some, name):
    check(name, some[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", kernel_cases.ALL)
def test_kernels_equal_their_twins_over_every_memory(name):
    check(name, compared([name])[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
@pytest.mark.parametrize("heads", [12, 40])
def test_kernels_compile_for_cards_without_spilling_registers(capability, heads):
    """For the widths of 1.3B and 14B; that they run is another matter."""
    from tests.helpers.compiled_kernels import memory_code, modulation_code

    made = modulation_code(capability, heads * 128)
    for precision in PRECISIONS:
        made += memory_code(capability, heads, precision)
    assert all(kernel.asm["cubin"] and "st.local" not in kernel.asm["ptx"] for kernel in made)


def check(name, found):
    """To one unit in the last place of bfloat16 and float16; to 1e-6 in float32. A code of a quantised key may be the
    next one, where the key itself was rounded to its other neighbour: in one of two hundred places at most."""
    assert found
    for what, stored, ulps, error, unequal in found:
        if name.endswith("float32"):
            assert error < 1e-6, what
        elif name.startswith("memory") and not ONCE:  # torch 2.6, whose RMS norm rounds before and after its weight
            assert error < (5e-2 if stored else 8e-3), what
        elif stored:
            assert unequal == 0 or ulps <= 1 or (unequal < 0.005 and what != "stored v"), what
        else:
            assert ulps <= 1, what


def test_kernels_are_off_under_gradient_and_on_a_cpu(monkeypatch):
    x = torch.zeros(1, 4, 8)
    with torch.no_grad():
        assert not launching.fits(x)
        monkeypatch.setattr(launching, "runs_on", lambda device: True)
        assert launching.fits(x) and not launching.fits(x.double()) and not launching.fits(x.transpose(1, 2))
    assert not launching.fits(x)


@pytest.mark.parametrize(
    ("card", "dtype", "reason"),
    [
        (Card("cpu"), torch.bfloat16, "they need an NVIDIA GPU, and the device is cpu"),
        (Card("a T4", (7, 5)), torch.float16, "they need compute capability 8.0, and a T4 has 7.5"),
        (AMPERE, torch.float64, "they compute in bfloat16, float16 or float32, and the student is in float64"),
        (AMPERE, torch.bfloat16, None),
    ],
)
def test_where_no_kernel_can_run(monkeypatch, card, dtype, reason):
    monkeypatch.setattr(choice, "card_of", lambda device: card)
    monkeypatch.setattr(choice, "installed", lambda: True)
    assert choice.why_not(torch.device("cpu"), dtype) == reason
    monkeypatch.setattr(choice, "installed", lambda: False)
    assert choice.why_not(torch.device("cpu"), dtype) == "Triton is not installed"


def test_a_kernel_that_is_wrong_or_fails_is_left_to_torch(monkeypatch, caplog):
    """On a card that can: what the first use finds. The kernels are stubs here, by their plain twins."""

    def wrong(x, weight, bias, scale, shift, eps):
        return x + 1

    def plain(x, y, gate):
        return modulation.gated_residual(x, y, gate[:, :, None])

    def fails(*arguments):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(choice, "card_of", lambda device: AMPERE)
    monkeypatch.setattr(choice, "installed", lambda: True)
    for module in (launching, modulation):
        monkeypatch.setattr(module, "fits", lambda x: not torch.is_grad_enabled())
    monkeypatch.setattr(modulation.modulation_ops, "modulated_norm", wrong)
    monkeypatch.setattr(modulation.modulation_ops, "gated_residual", plain)
    monkeypatch.setattr("salt.memory.fused.fits", lambda x: True)
    monkeypatch.setattr("salt.memory.fused.rotate_and_write", fails)
    choice.working_kernels.cache_clear()
    student = SaltTransformer3DModel(
        num_attention_heads=2, attention_head_dim=64, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=1
    )
    with caplog.at_level(logging.WARNING):
        found = choice.set_kernels(student, True, torch.device("cpu"))
        kernels = found.kernels
        assert not kernels.norm and kernels.residual
        assert not kernels.memory(MemoryPolicy.parse("window:9,int8"))
    choice.working_kernels.cache_clear()
    choice.memory_works.cache_clear()
    assert student.kernels is student.blocks[0].kernels is student.blocks[0].attn1.processor.kernels is kernels
    assert "norm and modulation is left to torch: a trial is wrong by" in caplog.text
    fails = "memory sink:3,window:9,int8 is left to torch: a trial fails: RuntimeError: no kernel image is available"
    assert fails in caplog.text


def test_presets_and_the_switch(monkeypatch):
    """Every preset but `exact` uses them, unless they are switched off; here, on a CPU, none is there."""
    assert [name for name, preset in PREFERENCES.items() if not preset.kernels] == ["exact"]
    pipe = SaltPipeline.tiny()
    assert pipe.kernels.reason == "not asked for"
    pipe.set_acceleration("low memory")
    assert pipe.kernels.kernels == NO_KERNELS
    monkeypatch.setattr(choice, "why_not", lambda device, dtype: None)
    monkeypatch.setattr(choice, "working_kernels", lambda *arguments: Kernels(norm=True))
    assert pipe.components_in_use().kernels.kernels == pipe.transformer.blocks[0].kernels == Kernels(norm=True)
    pipe.set_kernels("off")
    assert pipe.kernels.kernels == pipe.transformer.blocks[0].kernels == NO_KERNELS
    with pytest.raises(ValueError, match="kernels: found 'on', expected auto or off"):
        pipe.set_kernels("on")
