"""One case of `benchmarks.comfyui`, inside ComfyUI's own Python: FOLDER CASE(json) -> a line RESULT {json}.

FOLDER keeps the random student's file and core's latents between cases.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
FOLDER, CASE = Path(sys.argv[1]), json.loads(sys.argv[2])
SEED = 7
REPEATS = 3
sys.path.insert(0, str(ROOT / "tests" / "comfyui"))

import host  # noqa: E402 - the tests' way into ComfyUI

host.start()

import psutil  # noqa: E402
import torch  # noqa: E402 - after ComfyUI has read its arguments

PACK = host.pack(FOLDER)
NAME = PACK.bridge.__name__.removesuffix(".nodes.bridge")
SAMPLING, STUDENT = import_module(f"{NAME}.nodes.sampling_nodes"), import_module(f"{NAME}.salt.student")


class CoreNoise:
    """Noise as core's sampler draws it: the graph's for a block's start, a generator of its own between steps."""

    def __init__(self, initial, between):
        self.initial, self.seeds = initial, between.seeds

    def __call__(self, start, frames, draw):
        here = self.initial[:, :, start : start + frames]
        if draw == 0:
            return here
        torch.manual_seed(SEED + start // CASE["block"] * 1000 + draw - 1)
        return torch.randn_like(here)


def student_file() -> Path:
    """A random student as one file that core takes for autoregressive: salt-tiny's shape, or 0.3 billion weights."""
    path = FOLDER / f"{CASE['name'][:4]}.safetensors"
    if not path.exists():
        big = CASE["name"] == "0.3B"
        torch.manual_seed(0)
        model = STUDENT.SaltTransformer3DModel(
            num_attention_heads=8 if big else 2, attention_head_dim=128, ffn_dim=4096 if big else 256,
            num_layers=20 if big else 4, text_dim=4096, freq_dim=256,
        )  # fmt: skip
        with torch.no_grad():
            model.proj_out.weight.normal_(std=0.2)
        import_module(f"{NAME}.salt.checkpoints").save_wan(model, path)
    return path


class Peak:
    """Highest resident memory of the process while open, above what it was at the start, in MiB."""

    def __enter__(self):
        self.before = self.most = psutil.Process().memory_info().rss
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self):
        while not self.over.wait(0.005):
            self.most = max(self.most, psutil.Process().memory_info().rss)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    @property
    def mib(self):
        return (self.most - self.before) / 2**20


@torch.inference_mode()
def main() -> None:
    import comfy.sd
    from comfy_extras.nodes_ar_video import SamplerARVideo
    from comfy_extras.nodes_custom_sampler import BasicGuider, RandomNoise, SamplerCustomAdvanced

    model = comfy.sd.load_diffusion_model(str(student_file()))
    times: list[float] = []

    def timed(apply_model, call):
        out = apply_model(call["input"], call["timestep"], **call["c"])
        times.append(time.perf_counter())
        return out

    model.set_model_unet_function_wrapper(timed)
    if CASE["policy"] is None:
        sampler = SamplerARVideo.execute(num_frame_per_block=CASE["block"]).args[0]
    else:
        SAMPLING.NoiseOfGraph = CoreNoise
        policy = PACK.memory.MemoryPolicy.parse(CASE["policy"])
        sampler = SAMPLING.SaltSampler.execute(frames_per_block=CASE["block"], stepping="sde", policy=policy).args[0]
    text = torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(1))
    guider = BasicGuider.execute(model=model, conditioning=[[text, {}]]).args[0]
    sigmas = SAMPLING.SaltSigmas.execute(nfe=str(CASE["nfe"]), steps="", shift=5.0).args[0]
    latent = {"samples": torch.zeros(1, 16, CASE["frames"], CASE["size"], CASE["size"])}
    parts = dict(
        noise=RandomNoise.execute(noise_seed=SEED).args[0], guider=guider, sampler=sampler, sigmas=sigmas
    )  # fmt: skip
    short = {"samples": torch.zeros(1, 16, CASE["block"], CASE["size"], CASE["size"])}
    SamplerCustomAdvanced.execute(**parts, latent_image=short)  # loads the model, so that its memory is not counted
    runs, peaks = [], []
    for _ in range(REPEATS):
        times.clear()
        with Peak() as peak:
            began = time.perf_counter()
            made = SamplerCustomAdvanced.execute(**parts, latent_image=latent).args[0]["samples"]
            runs.append((time.perf_counter() - began, [began, *times]))
        peaks.append(peak.mib)
    seconds, marks = min(runs)  # the quietest: the machine has other users
    blocks = CASE["frames"] // CASE["block"]
    # Ours makes a block's context pass and the next block's first step one call.
    calls = CASE["nfe"] + (CASE["policy"] is None)
    ends = marks[::calls][: blocks + 1]
    spans = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    quarter = max(len(spans) // 4, 1)
    result = {
        "seconds": seconds, "blocks": blocks, "per_block": seconds / blocks, "peak_mib": median(peaks),
        "growth": median(spans[-quarter:]) / median(spans[1 : quarter + 1]),
    }  # fmt: skip
    reference = FOLDER / f"{CASE['name']}.pt"
    if CASE["policy"] is None:
        torch.save(made.clone(), reference)
    elif CASE["policy"] == "full":
        core = torch.load(reference, weights_only=True)
        # Its first blocks: a random model's rollout feeds on itself, and rounding grows from block to block.
        first = slice(0, 3 * CASE["block"])
        result["error"] = ((made - core)[:, :, first].norm() / core[:, :, first].norm()).item()
    print("RESULT " + json.dumps(result))


main()
