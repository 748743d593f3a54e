"""What a queued run leaves ready for the next, and rollouts with core's own ways to save time and memory."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec

import torch
import torch.nn.functional as F

CALLS: list[tuple[int, int]] = []


def sageattn(q, k, v, attn_mask=None, is_causal=False, tensor_layout="HND", **_):
    """What the sageattention package offers, exact, and counted: the true one needs a CUDA device."""
    turned = [x if tensor_layout == "HND" else x.transpose(1, 2) for x in (q, k, v)]
    CALLS.append((turned[0].shape[2], turned[1].shape[2]))
    out = F.scaled_dot_product_attention(*turned, attn_mask=attn_mask)
    return out if tensor_layout == "HND" else out.transpose(1, 2)


if "--use-sage-attention" in sys.argv:
    sys.modules["sageattention"] = importlib.util.module_from_spec(ModuleSpec("sageattention", None))
    sys.modules["sageattention"].sageattn = sageattn

from .session import PACK, error, golden_model, run_case, seeded, through_comfyui, through_engine  # noqa: E402
from .session import text as words  # noqa: E402
from .startup import GOLDEN  # noqa: E402 - ComfyUI looks for the module above as it starts
from .tiny_model import NODES, PROMPT, extend, output_of, part, rollout, text, tiny  # noqa: E402

POOL = part("nodes.adapter.buffer_pool")


@torch.inference_mode()
def queued(model, frames=9, seed=3, policy=None):
    """Latents of one run of Salt Sampler in core's custom sampling."""
    from comfy_extras.nodes_custom_sampler import BasicGuider, RandomNoise, SamplerCustomAdvanced

    policy = None if policy is None else PACK.memory.MemoryPolicy.parse(policy)
    sampler = NODES.SaltSampler.execute(frames_per_block=0, stepping="sde", policy=policy).args[0]
    return output_of(
        SamplerCustomAdvanced,
        noise=output_of(RandomNoise, noise_seed=seed),
        guider=output_of(BasicGuider, model=model, conditioning=text(PROMPT)),
        sampler=sampler,
        sigmas=NODES.SaltSigmas.execute(nfe="2", steps="", shift=5.0).args[0],
        latent_image={"samples": torch.zeros(1, 16, frames, 8, 8)},
    )["samples"]


def pointers(memory):
    return [tensor.data_ptr() for layer in memory.store.buffers for tensor in layer]


class Watching:
    """Where the memory of every run lay, as the run began."""

    def __init__(self):
        self.runs = []
        for module in (part("nodes.adapter.custom_sampling"), part("nodes.adapter.rollout_runner")):
            module.run_blocks = self.watched(module.run_blocks)

    def watched(self, run_blocks):
        def run(inputs, plan, memory, *rest, **options):
            kv = memory.memory
            taken = None if kv.store is None else pointers(kv)
            out = run_blocks(inputs, plan, memory, *rest, **options)
            self.runs.append({"taken": taken, "used": pointers(kv)})
            return out

        return run


def buffers():
    """Queued runs of one sampler: the second takes the buffers of the first; another policy or length does not."""
    seen, model, found = Watching(), tiny(), {}
    for policy in ("full", "sink:3,window:6", "relative:3,window:6,int8"):
        seen.runs.clear()
        first, other, again = (queued(model, seed=seed, policy=policy) for seed in (3, 4, 3))
        found[policy] = {
            "fresh": seen.runs[0]["taken"] is None,
            "same": seen.runs[0]["used"] == seen.runs[1]["taken"] == seen.runs[2]["used"],
            "equal": torch.equal(first, again) and not torch.equal(first, other),
        }
    seen.runs.clear()
    queued(model, policy="full")
    queued(model, frames=12, policy="full")
    found["other length"] = seen.runs[1]["taken"]
    return found


def held():
    """A memory on a wire through runs of both kinds: not a number of it changes, and it continues as it would have."""
    seen, model = Watching(), tiny()
    latents, memory, _ = rollout(model)
    expected = extend(model, memory, latents)[0]["samples"]
    before = [tensor.clone() for layer in memory.memory.store.buffers for tensor in layer]
    theirs = set(pointers(memory.memory))
    seen.runs.clear()
    for seed in (1, 2):
        rollout(model, seed=seed)
        queued(model, frames=9, seed=seed)
    now = [tensor for layer in memory.memory.store.buffers for tensor in layer]
    return {
        "unchanged": all(torch.equal(a, b) for a, b in zip(before, now, strict=True)),
        "apart": all(not theirs & set(run["used"]) for run in seen.runs),
        "goes on": torch.equal(extend(model, memory, latents)[0]["samples"], expected),
    }


def on_a_device():
    """What the wire gets of a memory on a device (here only by name): itself within our share of it, else a copy."""
    import comfy.model_management as management

    model, found = tiny(), {}
    for total in (1 << 40, 1 << 20):
        management.get_total_memory = lambda device, total=total: total
        memory = rollout(model)[1]
        memory.memory.device = memory.memory.store.home = torch.device("cuda", 0)
        own, content = pointers(memory.memory), memory.memory.store.buffers[0][0].clone()
        rested = POOL.memory_for_output(model, memory)
        found[str(total)] = {
            "itself": rested is memory,
            "on": rested.memory.device.type,
            "own buffers": pointers(rested.memory) == own,
            "equal": torch.equal(rested.memory.store.buffers[0][0], content),
            "spare": len(POOL.pool_of(model).stores),
        }
    return found


def worked_out():
    """How often the prompt is embedded, a layer's keys and the fingerprint are computed, in two runs."""
    model, counts = tiny(), {"embedded": 0, "keys": 0, "fingerprint": 0}
    wan, read = model.model.diffusion_model, PACK.fingerprint.compute_fingerprint

    def counting(name):
        def hook(*_):
            counts[name] += 1

        return hook

    def reading(patcher):
        counts["fingerprint"] += 1
        return read(patcher)

    wan.text_embedding[0].register_forward_hook(counting("embedded"))
    wan.blocks[0].cross_attn.k.register_forward_hook(counting("keys"))
    PACK.fingerprint.compute_fingerprint = reading
    found = [dict(counts, equal=True)]
    first = queued(model)
    found.append(dict(counts))
    again = queued(model)
    return [*found, dict(counts, equal=torch.equal(first, again))]


def compile_node():
    """Core's TorchCompileModel: the same clip, and a second queued run compiles nothing."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel
    from torch._dynamo.utils import counters

    def compiled():
        return {"graphs": counters["stats"]["unique_graphs"], "frames": counters["frames"]["ok"]}

    model = tiny()
    plain = queued(model)
    with torch.inference_mode():
        fast = output_of(TorchCompileModel, model=model, backend="inductor")
    first = queued(fast)
    before = compiled()
    again = queued(fast, seed=3)
    queued(fast, frames=12)
    return {"error": error(first, plain), "again": error(again, plain), "compiled": before, "after": compiled()}


def sage():
    """Core's option --use-sage-attention: all attention of the rollout goes through it, over memory and block."""
    model = golden_model(dtype=torch.float32)
    shape = (1, 16, 6, 8, 12)
    CALLS.clear()
    latents, _ = through_comfyui(model, words(0), seeded(), shape)
    student, prompt = (
        PACK.checkpoints.load_student(GOLDEN / "tiny_a.safetensors"),
        PACK.conditioning.Conditioning(words(0)),
    )
    expected = through_engine(student, prompt, seeded(), shape)
    return {"error": error(latents, expected), "calls": len(CALLS), "longest keys": max(k for _, k in CALLS)}


def low_vram():
    """Weights left where they are and cast, with a LoRA, at each use, as core does where a MODEL does not fit."""
    import comfy.model_management as management
    import comfy.sd

    name = "diffusion_model.blocks.0.self_attn.q"
    draw = torch.Generator().manual_seed(3)
    factors = {
        f"{name}.lora_A.weight": torch.randn(4, 128, generator=draw) * 0.1,
        f"{name}.lora_B.weight": torch.randn(128, 4, generator=draw) * 0.1,
    }
    shape = (1, 16, 6, 8, 12)
    whole, _ = comfy.sd.load_lora_for_models(golden_model(dtype=torch.float32), None, factors, 1.0, 0.0)
    expected, _ = through_comfyui(whole, words(0), seeded(), shape)
    plain, _ = through_comfyui(golden_model(dtype=torch.float32), words(0), seeded(), shape)
    load = management.LoadedModel.model_load

    def little(self, lowvram_model_memory=0, force_patch_weights=False):
        return load(self, 1, force_patch_weights)

    management.LoadedModel.model_load = little
    cast, _ = comfy.sd.load_lora_for_models(golden_model(dtype=torch.float32), None, factors, 1.0, 0.0)
    latents, _ = through_comfyui(cast, words(0), seeded(), shape)
    layer = cast.model.diffusion_model.blocks[0].self_attn.q
    return {
        "error": error(latents, expected),
        "moved": error(plain, expected),
        "cast": bool(layer.comfy_cast_weights) and len(layer.weight_function),
        "low vram": cast.model.model_lowvram,
    }


if __name__ == "__main__":
    run_case(buffers, held, on_a_device, worked_out, compile_node, sage, low_vram)
