"""A live session on the fake device: what each of its blocks asks for, while controls come in between.

The engine is run without the session's threads: viewers, pacing and recording are work of the host, on frames that have
arrived in main memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.ledger.cases import SHALLOW, SIZES
from benchmarks.ledger.counting import DENOISE, Ledger, Phase
from benchmarks.ledger.fake_device import clear_caches
from benchmarks.ledger.runs import RunCase, pipeline
from salt.live.controls import Control, Guidance, Prompt
from salt.live.engine import LiveEngine
from salt.live.pipeline_host import PipelineHost
from salt.live.settings import LiveSettings


@dataclass(frozen=True)
class LiveCase:
    """controls: what is sent after blocks, by the number of blocks made. options: of `LiveSettings`."""

    blocks: int
    controls: dict[int, Control] = field(default_factory=dict)
    size: str = "1.3B"
    policy: str = "sink:3,window:12"
    options: dict[str, Any] = field(default_factory=dict)


STEERED = LiveCase(
    14,
    {
        5: Prompt.of("another", blocks=2),
        9: Prompt.of("a third", switch="recache", blocks=1),
        12: Guidance(3.0),
    },
)


@torch.no_grad()
def live_phases(case: LiveCase, layers: int = SHALLOW) -> list[Phase]:
    """Of every block: its denoising with what is done for a control before it, at `layers` layers, undecoded; with what
    has read the memory, from the second block on.

    Call it within `fake_cuda()`.
    """
    clear_caches()
    with Ledger() as ledger:
        run = RunCase(size=case.size, policy=case.policy, decoder="none")
        host = PipelineHost(pipeline(run, layers, ledger))
        engine = LiveEngine(host, LiveSettings("a prompt", policy=case.policy, **case.options))
        ledger.start_again()
        phases: list[Phase] = []

        def gate() -> bool:
            if engine.made in case.controls and engine.log[-1:] != [(engine.made, case.controls[engine.made])]:
                engine.apply(case.controls[engine.made])
            return len(phases) < case.blocks

        for _ in engine.blocks(gate):
            phases.append(ledger.phases[DENOISE])
            ledger.start_again()
            stores = [m.store for m in (engine.memories.memory, engine.memories.negative_memory) if m.store is not None]
            ledger.watch(t for store in stores for layer in store.buffers for t in layer)
        return phases


def full_depth(shallow: Phase, deep: Phase, size: str) -> tuple[float, float]:
    """Launches and bytes of a block at full depth, from those at SHALLOW layers and one more."""
    more = deep.costs - shallow.costs
    costs = shallow.costs + more * (SIZES[size]["num_layers"] - SHALLOW)
    return costs.launches, costs.bytes
