"""Wan's text encoder alone, at true width with few layers: what one prompt asks of the device at full depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.ledger.cases import DEEP, SHALLOW, at_depth
from benchmarks.ledger.counting import Costs, Ledger
from benchmarks.ledger.fake_device import DEVICE
from benchmarks.random_umt5 import UMT5, Tokens
from salt.models.text_encoder import UMT5TextEncoder

Placement = Literal["whole", "layer by layer"]


@dataclass(frozen=True)
class TextCosts:
    """Of one prompt of 512 tokens. peak: bytes on the device, the encoder's own included. waits: places where the host
    waits, of the layers that are run."""

    costs: Costs
    peak: float
    waits: dict[str, int]


def umt5(device: torch.device | str, layers: int = UMT5["num_layers"]) -> UMT5TextEncoder:
    """UMT5 of Wan's size in bfloat16 on `device`, computing on the fake device."""
    with torch.device(device):
        model = UMT5EncoderModel(UMT5Config(**{**UMT5, "num_layers": layers})).to(torch.bfloat16).eval()
    tokenizer: Any = Tokens()
    return UMT5TextEncoder(model, tokenizer, device=DEVICE)


def text_costs(placement: Placement, prompts: int = 1) -> TextCosts:
    """Costs at full depth, from the two depths that are run. Call it within `fake_cuda()`.

    placement: on the device as a whole, or in main memory with its layers on the device one after another.
    """
    low, high = (_encode(placement, prompts, n) for n in (SHALLOW, DEEP))
    layers = UMT5["num_layers"]
    costs = low.costs + (high.costs - low.costs) * ((layers - SHALLOW) / (DEEP - SHALLOW))
    return TextCosts(costs, at_depth(low.peak, high.peak, layers), high.waits)


def _encode(placement: Placement, prompts: int, layers: int) -> TextCosts:
    with Ledger() as ledger:
        encoder = umt5(DEVICE if placement == "whole" else "cpu", layers)
        ledger.start_again()  # without the float32 weights that the model is made with
        encoder.encode(["a prompt"] * prompts)
        return TextCosts(ledger.phase.costs, ledger.phase.peak, dict(ledger.phase.waits))
