"""How much memory a recipe needs, on each GPU and beside it, before anything heavy loads.

Weights are counted on models without storage (`backbones`), activations on forwards without storage (`tracing`). What
is there all the time is added to what the hungriest moment of an update adds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from salt.memory import MemoryGeometry, estimate_bytes
from salt.models.transformer_salt import SaltTransformer3DModel
from train.config.model_configs import backbones, config_of, meta_model
from train.config.recipe import Recipe, RecipeError, load_recipe
from train.distributed.parallel import Mode
from train.memory_estimate.tracing import Activations, Tracer, Use, text_length
from train.models import adapt

GIB = 2**30
# Not computed but set aside: CUDA context, workspaces of cuBLAS, cuDNN and NCCL, the allocator's fragmentation.
RESERVE = 3 * GIB
DDP_FITS = 80 * GIB
FP32, BF16 = 4, 2
# Wan 2.1's text encoder, UMT5-XXL, for where its folder is not there.
UMT5: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "d_kv": 64,
}


@dataclass(frozen=True)
class Estimate:
    """Bytes. always: on each GPU all the time. moments: what each moment of an update adds to that.

    host: in the machine's RAM for each process; `checkpoint` for the one process that writes it.
    """

    processes: int
    mode: Mode
    always: Mapping[str, int]
    moments: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]

    @property
    def peak(self) -> str:
        """The hungriest moment."""
        return max(self.moments, key=lambda m: sum(self.moments[m].values()))

    @property
    def parts(self) -> dict[str, int]:
        """What lies on each GPU at the hungriest moment."""
        return {**self.always, **self.moments[self.peak]}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def ram(self) -> int:
        """Of the process that writes checkpoints, beside the GPU: loading is over when the first is written."""
        steady = sum(size for name, size in self.host.items() if name not in ("loading", "checkpoint"))
        return steady + max(self.host["loading"], self.host["checkpoint"])


@dataclass(frozen=True)
class Weights:
    """Values of a model: of each tensor that learns, of all, of its largest transformer block, of what is in none.

    kept: bytes of all as `salt.checkpoints` loads it in bfloat16 (some weights stay float32).
    """

    learn: list[int]
    total: int
    block: int
    block_learns: int
    rest: int
    kept: int


def weights(config: dict[str, Any], lora_rank: int = 0) -> Weights:
    model = meta_model(config)
    if lora_rank:
        with torch.device("meta"):
            adapt(model, lora_rank)
    precise = SaltTransformer3DModel._keep_in_fp32_modules or []
    named = list(model.named_parameters())
    total = sum(p.numel() for _, p in named)
    block = list(model.blocks[0].parameters())
    size = sum(p.numel() for p in block)
    return Weights(
        learn=[p.numel() for _, p in named if p.requires_grad],
        total=total,
        block=size,
        block_learns=sum(p.numel() for p in block if p.requires_grad),
        rest=total - size * len(model.blocks),
        kept=sum(p.numel() * (FP32 if set(n.split(".")) & set(precise) else BF16) for n, p in named),
    )


def optimizer_bytes(learn: list[int], kind: str) -> int:
    """Two moments of every value. 8bit: a byte each and a float32 scale per 256, small tensors in float32."""
    if kind != "8bit":
        return sum(2 * FP32 * n + FP32 for n in learn)  # and AdamW counts its steps per tensor
    return sum(2 * (n + FP32 * ceil(n / 256)) if n >= 4096 else 2 * FP32 * n for n in learn)


def memory_bytes(recipe: Recipe, config: dict[str, Any]) -> int:
    """Bytes of a rollout's KV memory; 0 for a bidirectional student."""
    r = recipe.rollout
    if r.kind == "bidirectional":
        return 0
    model = meta_model({**config, "num_layers": 1})
    g = model.memory_geometry(recipe.optimisation.micro_batch, r.height, r.width)
    geometry = MemoryGeometry(config["num_layers"], g.heads, g.head_dim, g.height, g.width, g.batch)
    dtype = torch.bfloat16 if recipe.optimisation.precision == "bf16" else torch.float32
    return estimate_bytes(recipe.policy, geometry, dtype, r.frames)


def configurations(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Of the models that the recipe's stage has."""
    if recipe.stage == "distill":
        return backbones(recipe)
    return {"student": config_of(recipe.models.student, "models.student")}


def estimate(recipe: Recipe, processes: int = 1, mode: Mode = "single") -> Estimate:
    """Memory on each of `processes` GPUs. Raises RecipeError for models whose size cannot be told."""
    configs = configurations(recipe)
    return add_up(recipe, processes, mode, configs, Tracer(recipe, configs, mode == "fsdp").activations())


def add_up(
    recipe: Recipe, processes: int, mode: Mode, configs: dict[str, dict[str, Any]], activations: Activations
) -> Estimate:
    """The estimate, where activations have been traced (for weights gathered in bfloat16 if mode is fsdp)."""
    opt, settings = recipe.optimisation, recipe.models
    found = {name: weights(c, settings.lora_rank if name == "student" else 0) for name, c in configs.items()}
    learners = {name: w for name, w in found.items() if name != "teacher"}
    shards = processes if mode == "fsdp" else 1
    accumulates = opt.batch // processes > opt.micro_batch
    always: dict[str, int] = {}
    gradients: dict[str, int] = {}
    for name, w in learners.items():
        always[f"{name}, float32"] = ceil(FP32 * w.total / shards)
        always[f"{name}'s optimizer"] = ceil(optimizer_bytes(w.learn, opt.optimizer) / shards)
        gradients[name] = ceil(FP32 * sum(w.learn) / shards)
    always["average (EMA)"] = ceil(FP32 * sum(found["student"].learn) / shards)
    teacher = 0
    if "teacher" in found:
        teacher = found["teacher"].kept if opt.precision == "bf16" else FP32 * found["teacher"].total
    aligns = recipe.stage == "distill" and recipe.loss.align != "none"
    if teacher and not (settings.offload and not aligns):
        # Offloaded, the alignment's backward still needs it, and it stays for the next update's first call.
        always["teacher"] = ceil(teacher / (1 if settings.offload else shards))
    if mode == "ddp":
        always["gradient buckets (DDP)"] = FP32 * sum(sum(w.learn) for w in learners.values())
    if mode == "fsdp":
        always["gathered blocks (FSDP)"] = gathered_bytes(found, settings.offload, opt.precision)
    text_dim = configs["student"].get("text_dim", 4096)
    always["text embeddings"] = 2 * FP32 * opt.micro_batch * text_length(recipe) * text_dim
    always["reserve (runtime, fragments)"] = RESERVE
    earlier = {name: size if accumulates else 0 for name, size in gradients.items()}
    moments = moments_of(recipe, activations, gradients, earlier, memory_bytes(recipe, configs["student"]))
    if settings.offload and teacher and not aligns:
        moments["scores"]["teacher, while it runs"] = teacher
    if opt.optimizer == "adamw":
        most = max(gradients, key=lambda n: sum(found[n].learn))
        step = ceil(FP32 * sum(found[most].learn) / shards)
        moments["optimizer step"] = {"gradients": step, "AdamW's working copy": step}
    return Estimate(processes, mode, always, moments, host_bytes(recipe, configs, found, teacher))


def gathered_bytes(found: Mapping[str, Weights], offload: bool, precision: str) -> int:
    """FSDP's whole weights: every model's outside of its blocks, a block and the next, and a block's gradients as they
    are computed and as they are reduced (float32)."""
    size = BF16 if precision == "bf16" else FP32
    sharded = [w for name, w in found.items() if not (name == "teacher" and offload)]
    learns = max(w.block_learns for w in sharded)
    return size * (sum(w.rest for w in sharded) + 2 * max(w.block for w in sharded)) + (size + FP32) * learns


def moments_of(
    recipe: Recipe, a: Activations, gradients: Mapping[str, int], earlier: Mapping[str, int], memory: int
) -> dict[str, dict[str, int]]:
    """What each moment of an update holds besides what is always there. earlier: gradients of micro-batches before."""
    ours = {"gradients": gradients["student"]}
    if recipe.stage != "distill":
        return {"backward": ours | backward_of(a.whole)}
    kv = 0 if recipe.policy.residence == "cpu" else memory
    # Backward recomputes blocks from memory; without checkpointing it has all it needs.
    held = kv if recipe.models.checkpointing else 0
    rolled = {"gradients": earlier["student"], "KV memory": held, "activations until backward": a.exits.kept}
    working = {"KV memory": kv, "working memory": a.rollout.peak}
    moments = {
        "critic's rollout": {"gradients": earlier["critic"]} | working,
        "critic's backward": {"gradients": gradients["critic"]} | backward_of(a.critic),
        "rollout": rolled | working,
        "scores": rolled | {"working memory": a.scores.peak},
        "backward": rolled | ours | {"working memory": a.exits.backward},
    }
    if recipe.loss.align != "none":
        moments["alignment's reference"] = rolled | working | {"KV memory": held + kv}
        features = backward_of(a.alignment)
        features["teacher's activations"] = features.pop("activations until backward")
        moments["alignment"] = rolled | ours | features
    return moments


def backward_of(use: Use) -> dict[str, int]:
    return {"activations until backward": use.kept, "working memory": max(use.backward, use.peak - use.kept)}


def host_bytes(
    recipe: Recipe, configs: Mapping[str, dict[str, Any]], found: Mapping[str, Weights], teacher: int
) -> dict[str, int]:
    """RAM beside the GPUs."""
    learners = [w for name, w in found.items() if name != "teacher"]
    host = {"loading": max([teacher, *(FP32 * w.total for w in learners)])}
    if recipe.models.offload and teacher:
        host["teacher"] = teacher
    if recipe.models.text != "words" and not recipe.data.embeddings:
        host["text encoder"] = text_encoder_bytes(Path(recipe.models.text) / "text_encoder")
    if recipe.policy.residence == "cpu":
        host["KV memory"] = memory_bytes(recipe, configs["student"])
    states = sum(FP32 * w.total + optimizer_bytes(w.learn, recipe.optimisation.optimizer) for w in learners)
    host["checkpoint"] = states + FP32 * found["student"].total
    return host


def text_encoder_bytes(folder: Path) -> int:
    """Of UMT5 in bfloat16: of its files if they are there."""
    files = list(folder.glob("*.safetensors"))
    if files:
        return sum(f.stat().st_size for f in files)
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**UMT5))
    return BF16 * sum(p.numel() for p in model.parameters())


def estimates(recipe: Recipe, processes: Sequence[int], modes: Sequence[Mode]) -> list[Estimate]:
    """One process on its own, more under each of the modes that can work; ddp where it fits DDP_FITS.

    Forwards are traced once.
    """
    configs = configurations(recipe)
    traced: dict[bool, Activations] = {}
    found = []
    refused = "fsdp" if recipe.optimisation.optimizer == "8bit" else "single"  # as `checks.check_mode` does
    for count in processes:
        shared: list[Mode] = ["single"] if count == 1 else [m for m in modes if m not in ("single", refused)]
        for mode in shared:
            gathered = mode == "fsdp"
            if gathered not in traced:
                traced[gathered] = Tracer(recipe, configs, gathered).activations()
            one = add_up(recipe, count, mode, configs, traced[gathered])
            if mode != "ddp" or one.total <= DDP_FITS:
                found.append(one)
    return found


def table(recipe: Recipe, processes: Sequence[int] = (1, 8, 64), modes: Sequence[Mode] = ("fsdp", "ddp")) -> Table:
    """GiB per GPU, a column for each number of GPUs; parts under a hundredth of every total are summed up."""
    found = estimates(recipe, processes, modes)
    title = f"{recipe.name}: GiB per GPU, estimated"
    made = Table(title=title, title_style="bold", title_justify="left")
    made.add_column("")
    for one in found:
        made.add_column(f"{one.processes} GPU{'s' * (one.processes > 1)}\n{one.mode}", justify="right")
    names = list(dict.fromkeys(name for one in found for name in one.parts))
    large = [n for n in names if any(one.parts.get(n, 0) > one.total / 100 for one in found)]
    for name in large:
        made.add_row(name, *(gib(one.parts.get(name, 0)) for one in found))
    made.add_row("the rest", *(gib(one.total - sum(one.parts.get(n, 0) for n in large)) for one in found))
    made.add_section()
    made.add_row("total", *(gib(one.total) for one in found), style="bold")
    made.add_row("hungriest moment", *(one.peak for one in found))
    made.add_row("RAM of the first process", *(gib(one.ram) for one in found))
    return made


def gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def check_memory(recipe: Recipe, processes: int, mode: Mode, available_bytes: int) -> None:
    """Raise RecipeError, in one line, where a GPU has less than the recipe needs on it."""
    one = estimate(recipe, processes, mode)
    if one.total <= available_bytes:
        return
    parts = sorted(one.parts.items(), key=lambda part: -part[1])
    biggest = ", ".join(f"{name} {gib(size)}" for name, size in parts[:5])
    raise RecipeError(
        f"memory: {recipe.name} needs {gib(one.total)} GiB per GPU ({biggest}), found {gib(available_bytes)} GiB; "
        f"what would help: {', '.join(remedies(recipe, mode))}"
    )


def remedies(recipe: Recipe, mode: Mode) -> list[str]:
    """What a recipe can still do to need less."""
    settings, opt = recipe.models, recipe.optimisation
    possible = {
        "models.checkpointing=true": not settings.checkpointing,
        "models.keep=input": settings.checkpointing and recipe.keep != "input",
        "models.offload=true": recipe.stage == "distill" and not settings.offload and mode != "fsdp",
        "optimisation.optimizer=8bit": opt.optimizer != "8bit" and mode != "fsdp",
        "models.lora_rank=64": not settings.lora_rank,
        "optimisation.micro_batch=1": opt.micro_batch > 1,
        "loss.align=none": recipe.loss.align != "none",
        "fsdp over several GPUs": mode != "fsdp",
        "more GPUs": mode == "fsdp",
    }
    return [remedy for remedy, helps in possible.items() if helps]


def available_memory(device: torch.device) -> int:
    """Free bytes of a GPU, or of the machine's RAM."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def add_estimate(commands: Any) -> None:
    """The command `estimate RECIPE [key=value ...] [--gpus 1 8 64]`."""
    about = "Print how much memory a recipe needs on each GPU; its checkpoints need not be there."
    one: argparse.ArgumentParser = commands.add_parser("estimate", help=about, description=about)
    one.add_argument("recipe", help="a YAML file, or the name of one of ours")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="for example models.offload=true")
    one.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    one.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if min(args.gpus) < 1:
        raise RecipeError(f"--gpus: found {min(args.gpus)}, expected 1 or more")
    recipe = load_recipe(args.recipe, args.overrides)
    Console().print(table(recipe, args.gpus))
