"""Students of true size with few layers on the fake device, and what one forward of them costs at full depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.ledger.counting import Costs, Ledger
from benchmarks.ledger.fake_device import DEVICE, clear_caches
from salt.acceleration.cuda_graphs import CUDAGraphTransformer
from salt.acceleration.kernels.choice import ALL_KERNELS, use_kernels
from salt.conditioning import Conditioning
from salt.memory import KVMemory, MemoryPolicy
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.model_configs import WAN_1_3B, WAN_14B

# Wan 2.2 TI2V, of whose shape LongLive 2.0's students are.
WAN_5B: dict[str, Any] = {
    "num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {"1.3B": WAN_1_3B, "14B": WAN_14B, "5B": WAN_5B}
SHALLOW, DEEP = 2, 3  # layers that are run; in a deeper model every further layer costs what the third one does
BLOCK, LATENT = 3, (60, 104)  # latent frames of a block, rows and columns of latents at 832x480
TEXT_TOKENS = 512
FULL_CLIP = 21  # latent frames that a memory without a window holds when it is measured, those of the block included


def student(
    config: dict[str, Any],
    layers: int,
    dtype: torch.dtype = torch.bfloat16,
    kind: type[SaltTransformer3DModel] = SaltTransformer3DModel,
) -> SaltTransformer3DModel:
    """A student of this width on the device, in bfloat16 as it is loaded, or in another dtype."""
    with DEVICE:
        model = kind(**{"out_channels": 16, **config, "num_layers": layers})
    for name, p in list(model.named_parameters()):
        precise = any(part in (model._keep_in_fp32_modules or []) for part in name.split("."))
        owner, _, leaf = name.rpartition(".")
        data = torch.empty(p.shape, dtype=torch.float32 if precise else dtype, device=DEVICE)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(data, requires_grad=False))
    return model.eval()


def conditioning(batch: int = 1) -> Conditioning:
    return Conditioning(torch.zeros(batch, TEXT_TOKENS, 4096, dtype=torch.bfloat16, device=DEVICE))


@dataclass(frozen=True)
class ForwardCase:
    """One forward over a memory whose window is full. form: `read` a denoising step, `write` a context pass, `fused`
    both. kernels: with all fused kernels. graph: replayed as a CUDA graph, which Python launches at once; what it
    launches is counted, and the copies into its fixed buffers."""

    policy: str
    size: str = "1.3B"
    form: str = "read"
    kernels: bool = False
    graph: bool = False

    def __str__(self) -> str:
        more = ", kernels" * self.kernels + ", graph" * self.graph
        return f"{self.size}, {self.policy}, {self.form}{more}"


@dataclass(frozen=True)
class ForwardCosts:
    """Costs of a forward at full depth. groups: by kind of operation. transient: bytes above what is live before it, at
    most. memory: bytes that the policy keeps. reads, waits: as in `Phase`, of the layers that are run."""

    groups: dict[str, Costs]
    transient: float
    memory: float
    reads: dict[str, int]
    waits: dict[str, int]
    operations: dict[str, float]

    @property
    def costs(self) -> Costs:
        return sum(self.groups.values(), Costs())


def at_depth(shallow: float, deep: float, layers: int) -> float:
    """A count at `layers` layers, from those at SHALLOW and DEEP."""
    return shallow + (deep - shallow) / (DEEP - SHALLOW) * (layers - SHALLOW)


def forward_costs(case: ForwardCase) -> ForwardCosts:
    """Costs at full depth, from the two depths that are run. Call it within `fake_cuda()`."""
    config = SIZES[case.size]
    low, high = (_forward(case, config, n) for n in (SHALLOW, DEEP))
    layers = config["num_layers"]

    def costs_at(name: str) -> Costs:
        ours, theirs = (c.groups.get(name, Costs()) for c in (low, high))
        return ours + (theirs - ours) * ((layers - SHALLOW) / (DEEP - SHALLOW))

    return ForwardCosts(
        {name: costs_at(name) for name in high.groups},
        at_depth(low.transient, high.transient, layers),
        at_depth(low.memory, high.memory, layers),
        high.reads,
        high.waits,
        {name: at_depth(low.operations.get(name, 0), n, layers) for name, n in high.operations.items()},
    )


@torch.no_grad()
def _forward(case: ForwardCase, config: dict[str, Any], layers: int) -> ForwardCosts:
    policy, before = MemoryPolicy.parse(case.policy), 0
    clear_caches()  # so that both depths make the same tables
    with Ledger() as ledger:
        transformer, text = student(config, layers), conditioning()
        if case.kernels:
            use_kernels(transformer, ALL_KERNELS)
        model = CausalModel(transformer)
        memory = filled_memory(model, policy, text)
        if case.graph:
            model = CausalModel(CUDAGraphTransformer(transformer, lambda forward: forward))
        for _ in range(4 if case.graph else 2):  # the first makes what is kept for later ones, the third records
            ledger.watch(t for layer in memory.allocated(memory.next_frame).buffers for t in layer)
            ledger.start_again()
            before = ledger.now
            call_forward(model, memory, text, case.form)
            if policy.window is None:  # which would see more frames the next time
                memory.trim(FULL_CLIP - BLOCK)
        phase = ledger.phase
        return ForwardCosts(
            dict(phase.groups), phase.peak - before, memory.nbytes, dict(phase.reads), dict(phase.waits),
            dict(phase.operations),
        )  # fmt: skip


def filled_memory(model: CausalModel, policy: MemoryPolicy, text: Conditioning) -> KVMemory:
    """A memory whose window is full with the next block, as after the context passes of earlier blocks."""
    transformer: Any = model.student
    frames = policy.window or FULL_CLIP
    memory = transformer.new_memory(policy, text.text.shape[0], *LATENT, frames=frames)
    while memory.next_frame < (frames if policy.window else frames - BLOCK):
        memory.commit(memory.open(write=BLOCK))
    return memory


def call_forward(model: CausalModel, memory: KVMemory, text: Conditioning, form: str = "read") -> torch.Tensor:
    """One forward of a block (of two blocks where `form` is `fused`); one that writes is committed."""
    write, read = {"read": (0, BLOCK), "write": (BLOCK, 0), "fused": (BLOCK, BLOCK)}[form]
    memory_pass = memory.open(write=write, read=read) if write else memory.open(read=read)
    frames, batch = write + read, text.text.shape[0]
    x = torch.zeros(batch, 16, frames, *LATENT, dtype=torch.bfloat16, device=DEVICE)
    t = torch.full((batch, frames), 500.0, device=DEVICE)
    flow = model(ModelInput(x, t, text, memory_pass))
    if write:
        memory.commit(memory_pass)
    return flow
