"""Salt Rollout with a video, on salt-tiny and its VAE."""

from __future__ import annotations

from fractions import Fraction

import torch

from .session import error, run_case
from .tiny_model import part, refusal, rollout, tiny

TINY_MODEL = part("nodes.adapter.tiny_model")


def frames(count: int = 23, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def strengths():
    """Strength 1 beside no video, strength 0 beside core's encode, a strength between on both, and a changed one."""
    vae, model, images = TINY_MODEL.load_vae(), tiny(), frames()
    plain = rollout(model, seconds=1.3)[0]["samples"]
    full, _, report = rollout(model, video=images, strength=1.0, vae=vae)
    copied, memory, _ = rollout(model, video=images, strength=0.0, vae=vae)
    half, _, _ = rollout(model, video=images, strength=0.5, vae=vae)
    other, _, _ = rollout(model, video=1 - images, strength=0.5, vae=vae)
    return {
        "equal": torch.equal(plain, full["samples"]),
        "copied": error(copied["samples"], vae.encode(images[:21])),
        "frames": memory.memory.next_frame,
        "between": min(error(half["samples"], copied["samples"]), error(half["samples"], plain)),
        "changed": error(other["samples"], half["samples"]),
        "report": report,
    }


@torch.inference_mode()
def videos():
    """A VIDEO at half the rate is resampled by time; another size is scaled and cut."""
    as_video = part("nodes.adapter.core_versions").as_video
    vae, model, images = TINY_MODEL.load_vae(), tiny(), frames(12)
    doubled = images.repeat_interleave(2, dim=0)
    by_video = rollout(model, video=as_video(images, Fraction(8)), strength=0.0, vae=vae)[0]["samples"]
    by_images = rollout(model, video=doubled, strength=0.0, vae=vae)[0]["samples"]
    wide = rollout(model, video=frames(12, 64, 128), strength=0.0, vae=vae)[0]["samples"]
    return {
        "resampled": error(by_video, by_images),
        "frames": by_video.shape[2],
        "cut": error(wide, vae.encode(frames(12, 64, 128)[:9, :, 32:96])),
    }


def refusals():
    vae, model = TINY_MODEL.load_vae(), tiny()
    _, memory, _ = rollout(model, seconds=0.5)
    return {
        "vae": refusal(rollout, model, video=frames()),
        "short": refusal(rollout, model, video=frames(8), vae=vae),
        "memory": refusal(rollout, model, video=frames(), vae=vae, memory=memory),
        "image": refusal(rollout, model, video=frames(), vae=vae, start_image=frames(1)),
        "note": rollout(model, seconds=0.5, strength=0.3)[2],
    }


if __name__ == "__main__":
    run_case(strengths, videos, refusals)
