"""Memory that a recipe needs on each GPU and in host RAM, estimated before any checkpoint is loaded.

Weights are counted on models without storage (`model_bytes`), activations measured on forwards without storage
(`tracing`). The estimate is what is resident all the time plus what the largest phase of an update adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from train.config.model_configs import backbones, config_of
from train.config.recipe import Recipe
from train.config.vae_config import wan_vae
from train.distributed.launch import Mode
from train.lora_adapters import adapter_of
from train.memory_estimate.allocations import MemoryUse
from train.memory_estimate.model_bytes import (
    BF16,
    FP32,
    ModelWeights,
    kv_memory_bytes,
    model_weights,
    optimizer_bytes,
    text_encoder_bytes,
)
from train.memory_estimate.tracing import Activations, Tracer, text_length

GIB = 2**30
# Not computed but set aside: CUDA context, workspaces of cuBLAS, cuDNN and NCCL, the allocator's fragmentation.
RESERVE = 3 * GIB
DDP_LIMIT = 80 * GIB
LOW_BIT_COPIES = 12  # of a tensor in float32, while torchao updates it


@dataclass(frozen=True)
class Estimate:
    """Bytes. always: resident on each GPU. moments: what each phase of an update adds to that.

    host: in host RAM, per process; `checkpoint` only in the process that writes it.
    """

    processes: int
    mode: Mode
    always: Mapping[str, int]
    moments: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]

    @property
    def peak(self) -> str:
        """The phase of an update that needs the most memory."""
        return max(self.moments, key=lambda m: sum(self.moments[m].values()))

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name on each GPU in the peak phase."""
        return {**self.always, **self.moments[self.peak]}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def ram(self) -> int:
        """Host RAM of the process that writes checkpoints: loading is over when the first one is written."""
        steady = sum(size for name, size in self.host.items() if name not in ("loading", "checkpoint"))
        return steady + max(self.host["loading"], self.host["checkpoint"])


def configurations(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Configurations of the models that the recipe's stage uses, by name."""
    if recipe.stage == "distill":
        found = backbones(recipe)
        return found | ({"discriminator": found["critic"]} if recipe.loss.adversarial else {})
    if recipe.stage == "cd":
        return {name: config for name, config in backbones(recipe).items() if name != "critic"}
    return {"student": config_of(recipe.models.student, "models.student")}


def estimate(recipe: Recipe, processes: int = 1, mode: Mode = "single") -> Estimate:
    """Memory on each of `processes` GPUs. Raises RecipeError for models of unknown size."""
    configs = configurations(recipe)
    return add_up(recipe, processes, mode, configs, Tracer(recipe, configs, mode == "fsdp").activations())


def add_up(
    recipe: Recipe, processes: int, mode: Mode, configs: dict[str, dict[str, Any]], activations: Activations
) -> Estimate:
    """The estimate from traced activations (traced for weights gathered in bfloat16 if mode is fsdp)."""
    opt, settings = recipe.optimisation, recipe.models
    found = {name: model_weights(c, adapter_of(recipe, name)) for name, c in configs.items()}
    learners = {name: w for name, w in found.items() if name != "teacher"}
    shards = (opt.shard or processes) if mode == "fsdp" else 1
    groups = max(processes // (opt.sequence or 1), 1)
    accumulates = opt.batch // groups > opt.micro_batch
    always: dict[str, int] = {}
    gradients: dict[str, int] = {}
    for name, w in learners.items():
        always[f"{name}, float32"] = ceil(FP32 * w.total / shards)
        always[f"{name}'s optimizer"] = optimizer_bytes(w.learn, opt.optimizer, shards)
        gradients[name] = ceil(FP32 * sum(w.learn) / shards)
    always["average (EMA)"] = ceil(FP32 * sum(found["student"].learn) / shards)
    teacher = 0
    if "teacher" in found:
        teacher = found["teacher"].kept if opt.precision == "bf16" else FP32 * found["teacher"].total
    if recipe.loss.reward:
        always["autoencoder"] = FP32 * wan_vae(configs["student"]["out_channels"])[0].parameters
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
    kv = kv_memory_bytes(recipe, configs["student"])
    if recipe.streams and recipe.policy.residence != "cpu":
        always["KV memory of the streams"] = kv * (opt.batch // groups // opt.micro_batch)
    channels = configs["student"]["out_channels"]
    moments = phase_bytes(recipe, activations, gradients, earlier, 0 if recipe.streams else kv, channels)
    if settings.offload and teacher and not aligns:
        moments["scores" if "scores" in moments else "targets"]["teacher, while it runs"] = teacher
    if opt.optimizer != "fused":
        most = max(gradients, key=lambda n: sum(found[n].learn))
        step = ceil(FP32 * sum(found[most].learn) / shards)
        copy = ceil(LOW_BIT_COPIES * FP32 * max(found[most].learn) / shards) if opt.optimizer == "8bit" else step
        moments["optimizer step"] = {"gradients": step, "AdamW's working copy": copy}
    return Estimate(processes, mode, always, moments, host_bytes(recipe, configs, found, teacher, processes))


def gathered_bytes(found: Mapping[str, ModelWeights], offload: bool, precision: str) -> int:
    """Bytes that FSDP holds unsharded: every model's weights outside of its blocks, two blocks, and the gradients of a
    block as computed and as reduced (float32)."""
    size = BF16 if precision == "bf16" else FP32
    sharded = [w for name, w in found.items() if not (name == "teacher" and offload)]
    learns = max(w.block_learns for w in sharded)
    return size * (sum(w.rest for w in sharded) + 2 * max(w.block for w in sharded)) + (size + FP32) * learns


def phase_bytes(
    recipe: Recipe, a: Activations, gradients: Mapping[str, int], earlier: Mapping[str, int], memory: int, channels: int
) -> dict[str, dict[str, int]]:
    """Bytes that each phase of an update adds to what is resident. earlier: gradients of earlier micro-batches.

    channels: of latents.
    """
    ours = {"gradients": gradients["student"]}
    if recipe.stage != "distill":
        backward = {"backward": ours | backward_bytes(a.whole)}
        targets = {"targets": {"gradients": earlier["student"], "working memory": a.scores.peak}}
        return backward | targets if recipe.stage == "cd" else backward
    kv = 0 if recipe.policy.residence == "cpu" else memory
    # Backward recomputes blocks from the KV memory; without checkpointing it does not need it.
    held = kv if recipe.models.checkpointing else 0
    rolled = {"gradients": earlier["student"], "KV memory": held, "activations until backward": a.exits.kept}
    working = {"KV memory": kv, "working memory": a.rollout.peak}
    moments = {
        "critic's rollout": {"gradients": earlier["critic"]} | working,
        "critic's backward": {"gradients": gradients["critic"]} | backward_bytes(a.critic),
        "rollout": rolled | working,
        "scores": rolled | {"working memory": a.scores.peak},
        "backward": rolled | ours | {"working memory": a.exits.backward},
    }
    if recipe.loss.adversarial:
        # Of a micro-batch: real and generated clips, and both again for the gradient penalty, in one forward.
        both = backward_bytes(a.critic.repeated(4))
        moments["discriminator's backward"] = {"gradients": gradients["discriminator"]} | both
        moments["adversarial gradient"] = rolled | backward_bytes(a.critic)
    if recipe.loss.reward:
        moments["reward"] = rolled | decoding_bytes(recipe, channels)
    if recipe.loss.align != "none":
        moments["alignment's reference"] = rolled | working | {"KV memory": held + kv}
        features = backward_bytes(a.alignment)
        features["teacher's activations"] = features.pop("activations until backward")
        moments["alignment"] = rolled | ours | features
    return moments


def decoding_bytes(recipe: Recipe, channels: int) -> dict[str, int]:
    """What Wan's autoencoder adds while it decodes a clip for its reward, in float32."""
    r, (vae, side) = recipe.rollout, wan_vae(channels)
    pixels = FP32 * r.height * r.width * side**2
    video = 3 * (4 * (r.window or r.frames) - 3) * pixels
    return {"decoder": pixels * (vae.cache + vae.frame), "decoded clip": video}


def backward_bytes(use: MemoryUse) -> dict[str, int]:
    return {"activations until backward": use.kept, "working memory": max(use.backward, use.peak - use.kept)}


def host_bytes(
    recipe: Recipe, configs: Mapping[str, dict[str, Any]], found: Mapping[str, ModelWeights], teacher: int,
    processes: int,
) -> dict[str, int]:  # fmt: skip
    """Bytes of host RAM by purpose."""
    learners = [w for name, w in found.items() if name != "teacher"]
    host = {"loading": max([teacher, *(FP32 * w.total for w in learners)])}
    if recipe.models.offload and teacher:
        host["teacher"] = teacher
    if recipe.models.text != "words" and not recipe.data.embeddings:
        host["text encoder"] = text_encoder_bytes(Path(recipe.models.text) / "text_encoder")
    if recipe.policy.residence == "cpu":
        opt = recipe.optimisation
        streams = opt.batch // max(processes // (opt.sequence or 1), 1) // opt.micro_batch if recipe.streams else 1
        host["KV memory"] = streams * kv_memory_bytes(recipe, configs["student"])
    states = sum(FP32 * w.total + optimizer_bytes(w.learn, recipe.optimisation.optimizer) for w in learners)
    host["checkpoint"] = states + FP32 * found["student"].total
    return host


def usable_counts(recipe: Recipe, processes: Iterable[int]) -> list[int]:
    """Those of the numbers of processes that the batch divides over.

    `sequence` of them share each clip, and `shard` of them a copy of the weights.
    """
    opt = recipe.optimisation
    together = opt.sequence or 1
    whole = [n for n in processes if n % together == 0 and n % (opt.shard or 1) == 0]
    return [n for n in whole if opt.batch % (n // together * opt.micro_batch) == 0]


def usual_counts(recipe: Recipe) -> list[int]:
    """One GPU, a node's, eight nodes', and the most that the recipe runs on where these are fewer; usable ones."""
    opt = recipe.optimisation
    most = opt.batch // opt.micro_batch * (opt.sequence or 1)
    return usable_counts(recipe, sorted({1, 8, min(most, 64), 64}))


def estimates(recipe: Recipe, processes: Sequence[int], modes: Sequence[Mode]) -> list[Estimate]:
    """One process alone, several under each mode that can work; ddp only where it fits DDP_LIMIT.

    Forwards are traced once per precision of the weights. Counts that are not usable are left out.
    """
    configs = configurations(recipe)
    traced: dict[bool, Activations] = {}
    found = []
    for count in usable_counts(recipe, processes):
        shared: list[Mode] = ["single"] if count == 1 else [m for m in modes if m != "single"]
        for mode in shared:
            gathered = mode == "fsdp"
            if gathered not in traced:
                traced[gathered] = Tracer(recipe, configs, gathered).activations()
            one = add_up(recipe, count, mode, configs, traced[gathered])
            if mode != "ddp" or one.total <= DDP_LIMIT:
                found.append(one)
    return found
