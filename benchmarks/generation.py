"""Generation speed of the engine and of the plain loop: seconds per block with a full window, end to end and to the
first frame, and peak memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan

from benchmarks.measure import PeakMemory
from benchmarks.plain import plain_memory, plain_rollout
from benchmarks.random_umt5 import UMT5, Tokens, random_umt5
from benchmarks.training import RandomText
from salt.acceleration.presets import Preference
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.taehv import TinyDecoder, TinyStreamDecoder
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.noise import SeededNoise
from salt.pipeline import SaltPipeline
from salt.planning.arithmetic import forward_flops
from salt.rollout import RolloutSettings
from salt.schedule import Schedule
from salt.selftest.timing import timed
from salt.spec import FPS, StudentSpec
from train.config.model_configs import WAN_1_3B
from train.experiments.tiny.run_state import placed

PROMPT = "a fast red circle moving right"
BLOCK, PIXEL_FRAMES = 3, 12  # latent frames of a block, and the pixel frames they decode to
# Latent frames: the window is full from 12 on, and the CUDA graph recorded soon after.
SHORT_CLIP, LONG_CLIP = 21, 33
REPEATS = 2


@dataclass(frozen=True)
class Case:
    """policy: of the memory. nfe: evaluations per block. prefer: see `set_acceleration`. decoder: wan or taehv."""

    policy: str
    nfe: int
    prefer: Preference = "exact"
    decoder: str = "wan"


def embedded() -> SaltPipeline:
    """The salt-tiny pipeline, at its 64 x 64 pixels."""
    return _quiet(SaltPipeline.tiny())


@dataclass(frozen=True)
class RandomWan:
    """Sizes of a pipeline with random weights; Wan 2.1 1.3B's by default. transformer, vae, umt5: what their
    configurations have differently. umt5 None: embeddings of 512 tokens are drawn, and none is computed. size: pixels
    (height, width)."""

    transformer: dict[str, Any] = field(default_factory=lambda: WAN_1_3B)
    vae: dict[str, Any] = field(default_factory=dict)
    umt5: dict[str, Any] | None = field(default_factory=lambda: UMT5)
    size: tuple[int, int] = (480, 832)


def random_wan(device: torch.device, sizes: RandomWan = RandomWan()) -> SaltPipeline:  # noqa: B008 - frozen
    """A pipeline of Wan 2.1's architecture, UMT5 and VAE included, with random weights in bfloat16."""
    torch.manual_seed(0)
    with device:
        transformer = placed(
            SaltTransformer3DModel(out_channels=16, **sizes.transformer).bfloat16().eval(), str(device)
        )
        vae = placed(AutoencoderKLWan(**sizes.vae).bfloat16().eval(), str(device))
    umt5 = None if sizes.umt5 is None else random_umt5(device, sizes.umt5)
    tokenizer: Any = None if sizes.umt5 is None else Tokens()
    pipe = SaltPipeline(transformer, vae, umt5, tokenizer, student=StudentSpec(), default_size=sizes.size)
    if sizes.umt5 is None:
        pipe.set_prompt_encoder(RandomText(512))
    return _quiet(pipe)


def _quiet(pipe: SaltPipeline) -> SaltPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def decode_with(pipe: SaltPipeline, decoder: str) -> None:
    """Make the pipeline decode with Wan's VAE, or with a decoder of TAEHV's size and random weights."""
    if decoder == "wan":
        pipe.set_decoder("wan")
        return
    model = TinyDecoder().to(pipe.run_device, torch.float16 if pipe.run_device.type == "cuda" else torch.float32)
    pipe.set_decoder(lambda: TinyStreamDecoder(model.eval()))


def clip_seconds(pipe: SaltPipeline, case: Case, frames: int, decoded: bool = False, repeats: int = REPEATS) -> float:
    """Wall seconds of a clip of `frames` latent frames, the fastest of `repeats`; decoded: to uint8 on the CPU."""
    options: dict[str, Any] = dict(
        num_frames=4 * frames - 3, num_inference_steps=case.nfe, memory_policy=case.policy, seed=0, fuse=True
    )

    def play() -> None:
        if decoded:
            for chunk in pipe.stream(PROMPT, **options):
                assert chunk.frames.device.type == "cpu" and chunk.frames.dtype == torch.uint8
        else:
            pipe(PROMPT, output_type="latent", **options)

    return min(timed(play, pipe.run_device) for _ in range(repeats))


def per_block(pipe: SaltPipeline, case: Case, decoded: bool = False) -> float:
    """Seconds per block, from two lengths of one clip, so that work done once per clip cancels out."""
    short, long = SHORT_CLIP, LONG_CLIP
    clip_seconds(pipe, case, long, decoded, repeats=1)  # compiles, and records CUDA graphs
    seconds = clip_seconds(pipe, case, long, decoded) - clip_seconds(pipe, case, short, decoded)
    return seconds * BLOCK / (long - short)


def denoising(pipe: SaltPipeline, case: Case, ceiling: dict[str, float]) -> dict[str, Any]:
    """Pixel frames per second without decoding, and its share of the measured matmul rate."""
    seconds = per_block(pipe, case)
    window = MemoryPolicy.parse(case.policy).window or SHORT_CLIP
    return {
        "fps": PIXEL_FRAMES / seconds,
        "of_matmul": _matmul_seconds(pipe, case.nfe, window, ceiling) / seconds,
    }


def full_memory(pipe: SaltPipeline, case: Case, ceiling: dict[str, float]) -> dict[str, Any]:
    """A clip of 21 latent frames with full memory: frames per second of the last block, and on average."""
    clip_seconds(pipe, case, SHORT_CLIP, repeats=1)
    whole, shorter = (clip_seconds(pipe, case, n) for n in (SHORT_CLIP, SHORT_CLIP - BLOCK))
    return {
        "fps": PIXEL_FRAMES / (whole - shorter),
        "fps_average": (4 * SHORT_CLIP - 3) / whole,
        "of_matmul": _matmul_seconds(pipe, case.nfe, SHORT_CLIP, ceiling) / (whole - shorter),
    }


def _matmul_seconds(pipe: SaltPipeline, nfe: int, window: int, ceiling: dict[str, float]) -> float:
    """Seconds of a block's arithmetic (its steps and its context pass) at the measured matmul rate."""
    config, (height, width) = pipe.transformer.config, pipe.default_size
    tokens = (height // pipe.spatial_scale // 2) * (width // pipe.spatial_scale // 2)
    work = forward_flops(config, BLOCK * tokens, window * tokens, pipe.prompt_encoder.encode([PROMPT]).shape[1])
    linear = ceiling["fp8_flops"] if pipe.acceleration.fp8 else ceiling["flops"]
    return (nfe + 1) * (work["linear"] / linear + work["attention"] / ceiling["flops"])


def end_to_end(pipe: SaltPipeline, case: Case) -> dict[str, Any]:
    """Decoded frames on the CPU: per second, over the playback rate, over the slower of denoising and decoding."""
    decode_with(pipe, case.decoder)
    together = per_block(pipe, case, decoded=True)
    denoise, decode = per_block(pipe, case), _decode_seconds(pipe)
    return {
        "fps": PIXEL_FRAMES / together,
        "of_playing": PIXEL_FRAMES / together / FPS,
        "over_slower": together / max(denoise, decode),
        "decoding_fps": PIXEL_FRAMES / decode,
        "first_frame_s": first_frame(pipe, case),
    }


def whole_clip(pipe: SaltPipeline, case: Case) -> dict[str, Any]:
    """A clip of 81 frames, from the prompt's text to frames on the CPU: per second, with what is done once a clip."""
    decode_with(pipe, case.decoder)
    clip_seconds(pipe, case, SHORT_CLIP, decoded=True, repeats=1)
    return {"fps": (4 * SHORT_CLIP - 3) / clip_seconds(pipe, case, SHORT_CLIP, decoded=True)}


def peak_gb(pipe: SaltPipeline, case: Case) -> float:
    """Peak memory while a clip is generated and decoded, weights included, in 10^9 bytes."""
    with PeakMemory(pipe.run_device) as peak:
        clip_seconds(pipe, case, SHORT_CLIP, decoded=True, repeats=1)
    return peak.mib * 2**20 / 1e9


def _decode_seconds(pipe: SaltPipeline) -> float:
    """Seconds per block of the decoder alone, in the middle of a clip."""
    decoder, (height, width) = pipe.new_decoder(), pipe.default_size
    latents = torch.randn(1, 16, BLOCK, height // 8, width // 8, device=pipe.run_device)
    decoder.decode(latents)
    return min(timed(lambda: decoder.decode(latents), pipe.run_device) for _ in range(REPEATS + 1))


def first_frame(pipe: SaltPipeline, case: Case) -> float:
    """Seconds from the call to the first frames on the CPU, with a warm pipeline."""
    seconds = []
    for seed in range(REPEATS):
        start = time.perf_counter()
        stream = pipe.stream(
            PROMPT, num_frames=9, num_inference_steps=case.nfe, memory_policy=case.policy, seed=seed, fuse=True
        )
        assert next(stream).frames.device.type == "cpu"
        seconds.append(time.perf_counter() - start)
        for _ in stream:
            pass
    return min(seconds)


@torch.no_grad()
def plain_per_block(pipe: SaltPipeline, case: Case) -> float:
    """Seconds per block of the plain loop, measured as `per_block` does."""
    short, long = SHORT_CLIP, LONG_CLIP
    student, (height, width) = pipe.transformer, (n // 8 for n in pipe.default_size)
    text = Conditioning(pipe.prompt_encoder.encode([PROMPT]).to(student.device, student.dtype))
    policy, settings = MemoryPolicy.parse(case.policy), RolloutSettings(Schedule.of(case.nfe, pipe.spec.shift))

    def clip(frames: int) -> None:
        noise = SeededNoise(0, 1, 16, height, width, student.device, student.dtype)
        memory = plain_memory(student, policy, 1, height, width, frames)
        for _ in plain_rollout(student, text, memory, noise, frames, settings):
            pass

    clip(short)
    seconds = [min(timed(lambda n=n: clip(n), student.device) for _ in range(REPEATS)) for n in (long, short)]
    return (seconds[0] - seconds[1]) * BLOCK / (long - short)
