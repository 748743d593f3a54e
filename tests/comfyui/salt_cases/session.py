"""A running ComfyUI with the pack in it (`PACK`), and one rollout through core's sampling and by the engine alone.

Importing it starts ComfyUI's modules, with the flags behind the case's name on the command line (none: `--cpu`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from . import startup

CASE, FLAGS = sys.argv[1], sys.argv[2:]
startup.start(*FLAGS)

FOLDER = Path(tempfile.mkdtemp())
PACK = startup.import_pack(FOLDER)
SIZE = (8, 12)
TWO_STEPS = PACK.rollout.RolloutSettings(PACK.schedule.Schedule.of(2))


def run_case(*cases: Callable[[], object]) -> None:
    """Run the case that the command line names and print what it returns as a line of JSON."""
    from comfyui_version import __version__

    result = {f.__name__: f for f in cases}[CASE]()
    print("RESULT " + json.dumps({"comfyui": __version__, "result": result}))


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def golden_model(**options):
    return startup.load(startup.save_golden(FOLDER / "golden.safetensors"), **options)


def text(seed: int, batch: int = 1, width: int = startup.TEXT_DIM) -> Tensor:
    return torch.randn(batch, 12, width, generator=torch.Generator().manual_seed(100 + seed))


def seeded(batch: int = 1):
    return PACK.noise.SeededNoise(5, batch, 16, *SIZE)


def through_comfyui(
    model,
    positive,
    source,
    shape: tuple[int, ...],
    settings=TWO_STEPS,
    policy=None,
    *,
    initial: Tensor | None = None,
    negative=None,
    on_step=None,
    reencode=None,
    later: dict[int, Tensor] | None = None,
    video=None,
) -> tuple[Tensor, object]:
    """Latents [B, 16, F, H, W] (start included) of a rollout in core's sampling, in model space; and its memory.

    positive, negative: a text tensor, or a whole CONDITIONING. later: texts by the latent frame at which they begin.
    video: how blocks start from a source video.
    """
    start_frames = 0 if initial is None else initial.shape[2]

    def run(inputs):
        memory = PACK.comfy_model.new_memory(model, policy or PACK.memory.MemoryPolicy(), shape[0], *shape[3:])
        changes = [PACK.conditioning.PromptChange(0, inputs.conds["positive"])]
        changes += [PACK.conditioning.PromptChange(frame, inputs.conds[str(frame)]) for frame in later or ()]
        blocks = PACK.rollout.rollout(
            inputs.model,
            PACK.conditioning.PromptSchedule(changes),
            memory,
            source,
            shape[2] - start_frames,
            settings,
            negative=inputs.conds.get("negative"),
            initial_latents=initial,
            on_step=on_step,
            reencode=reencode,
            video=video,
        )
        latents = torch.cat(([] if initial is None else [initial]) + [b.latents for b in blocks], dim=2)
        return PACK.sampler.SamplerOutput(latents, (latents, memory))

    named = {"positive": positive, **({} if negative is None else {"negative": negative})}
    named |= {str(frame): x for frame, x in (later or {}).items()}
    conds = {k: [[v, {}]] if isinstance(v, Tensor) else v for k, v in named.items()}
    sigmas = torch.tensor([*settings.schedule.sigmas, 0.0])
    with torch.inference_mode():  # as core's executor runs nodes
        out = PACK.sampler.sample(
            model, conds, torch.zeros(shape), sigmas, run, reserve=(1 << 20, settings.frames_per_block)
        )
        latents, memory = out.extra
        assert error(model.model.process_latent_in(out.latents), latents) < 1e-6, "a LATENT holds what the VAE reads"
    return latents, memory


def through_engine(student, conditioning, source, shape: tuple[int, ...], settings=TWO_STEPS, negative=None) -> Tensor:
    """The same rollout by the engine and its own transformer."""
    memory = student.new_memory(PACK.memory.MemoryPolicy(), shape[0], *shape[3:])
    model = PACK.causal_model.CausalModel(student)
    with torch.no_grad():
        blocks = PACK.rollout.rollout(model, conditioning, memory, source, shape[2], settings, negative=negative)
        return torch.cat([b.latents for b in blocks], dim=2)
