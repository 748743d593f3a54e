"""Finds blocks whose numbers are not finite. The device answers, and the host does not wait for it inside a block."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..rollout import Block

PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class NotFiniteError(RuntimeError):
    """NaN or infinity in place of a clip; the message names the block and what computed it."""


def student_not_finite(block: str) -> NotFiniteError:
    """The error about a block, by its name."""
    return NotFiniteError(
        f"{block}: the student's output is not finite (NaN or infinity), so the clip ends before it. A damaged weight "
        "file, a LoRA of another model or float16 can be the reason"
    )


def decoder_not_finite(block: str) -> NotFiniteError:
    return NotFiniteError(f"{block}: the decoder's output is not finite (NaN or infinity)")


@dataclass
class FiniteFlag:
    """Whether a tensor is finite, as the device has answered or will. Read `value` after `wait`."""

    value: Tensor
    done: torch.cuda.Event | None = None

    @classmethod
    def of(cls, x: Tensor) -> FiniteFlag:
        """Ask on the current stream."""
        finite = torch.isfinite(x).all()
        if not x.is_cuda:
            return cls(finite.cpu())
        value = torch.empty((), dtype=torch.bool, pin_memory=True)
        value.copy_(finite, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(x.device))
        return cls(value, done)

    @property
    def known(self) -> bool:
        """Whether the device has answered."""
        return self.done is None or self.done.query()

    def wait(self) -> bool:
        if self.done is not None:
            self.done.synchronize()
        return bool(self.value)


class FiniteCheck:
    """Checks blocks in order. `add` a block when it is computed, and `check` when the host waits for it anyway."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Block, FiniteFlag]] = deque()

    def add(self, block: Block) -> None:
        self._waiting.append((block, FiniteFlag.of(block.latents)))

    def check_known(self) -> None:
        """Check the blocks about which the device has answered; does not wait. Raises NotFiniteError."""
        while self._waiting and self._waiting[0][1].known:
            self._check_first()

    def check(self, block: Block | None = None) -> None:
        """Check up to `block`, or all; waits for the device. Raises NotFiniteError."""
        while self._waiting and (block is None or self._waiting[0][0].index <= block.index):
            self._check_first()

    def _check_first(self) -> None:
        block, flag = self._waiting.popleft()
        if not flag.wait():
            raise student_not_finite(block_name(block))


def check_weights(model: nn.Module, name: str) -> None:
    """Raise NotFiniteError, naming the first, where weights of `model` are NaN or infinite.

    Attention on a CPU makes finite numbers of them, so that the output does not tell. Quantised weights are not looked
    at.
    """
    names, extremes = [], []
    for weight_name, weight in model.named_parameters():
        plain = type(weight) is nn.Parameter and weight.dtype in PLAIN_DTYPES
        if plain and weight.numel() and weight.device.type != "meta":
            names.append(weight_name)
            extremes.append(torch.stack(weight.detach().aminmax()).float())
    finite = torch.stack(extremes).isfinite().all(dim=1).tolist() if names else []
    bad = [n for n, good in zip(names, finite, strict=True) if not good]
    if bad:
        more = f" (and {len(bad) - 1} others)" if len(bad) > 1 else ""
        raise NotFiniteError(
            f"{name}: the student's weight {bad[0]}{more} is not finite (NaN or infinity), expected numbers; the "
            "file is damaged, or was merged or converted in a type that is too small"
        )


def block_name(block: Block) -> str:
    return f"block {block.index + 1} of {block.count} (latent frames {block.start} to {block.stop - 1})"
