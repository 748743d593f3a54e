"""Mixtures of prompts: pure end points, weights, and their cap."""

import pytest
import torch

from salt.errors import InputError
from salt.live.controls import Blend, Prompt, WeightedPrompt
from salt.live.prompt_blend import MAX_DEPTH, PromptMix, mix_tensors, slerp
from salt.live.settings import LiveSettings
from salt.memory import MemoryPolicy


def test_a_blend_has_so_many_blocks_between_the_pure_prompts():
    steering = LiveSettings("a").steering(MemoryPolicy())
    steering = steering.after(Prompt((WeightedPrompt("b"),), blend=Blend(3)))
    shares = []
    for _ in range(5):
        choice, steering = steering.choose()
        shares.append(choice.prompt.texts().get("b"))
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0] and choice.prompt.parts == (("b", 1.0),)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_mixtures_of_embeddings(method):
    a, b, c = torch.randn(3, 1, 5, 8)
    a[:, 4] = 0  # padding
    assert mix_tensors([(a, 1.0)], method) is a
    mixed = mix_tensors([(a, 0.5), (b, 0.25), (c, 0.25)], method)
    assert torch.isfinite(mixed).all()
    if method == "linear":
        assert torch.allclose(mixed, a / 2 + b / 4 + c / 4, atol=1e-6)


def test_slerp_keeps_to_the_arc():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert torch.allclose(slerp(a, b, 0.5), torch.tensor([[3 * 0.5**0.5] * 2]))
    assert torch.allclose(slerp(a, b, 1 / 3).norm(), torch.tensor(2 + 2 / 3))
    assert torch.equal(slerp(a, a, 0.3), a) and torch.allclose(slerp(a, 0 * b, 0.25), 0.75 * a)


def test_blends_within_blends_have_an_end():
    mix = PromptMix((("a", 1.0),))
    with pytest.raises(InputError, match=f"found {MAX_DEPTH} blends within one another"):
        for _ in range(20):
            mix = mix.toward(PromptMix((("b", 1.0),)), 0.5, "linear")
