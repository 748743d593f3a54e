"""Salt Rollout and Salt Rollout to Video with a video, on salt-tiny and its VAE."""

from __future__ import annotations

from fractions import Fraction

import torch

from .running import Writes, decoded, output_folder, to_video
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


@torch.inference_mode()
def to_file():
    """Salt Rollout to Video beside Salt Decode of Salt Rollout; what is encoded before the first block is written."""
    folder, streaming = output_folder(), part("nodes.adapter.streaming_vae")
    vae, model, images = TINY_MODEL.load_vae(), tiny(), frames(45)
    encode, encoded, at_first = streaming.LoadedEncoder.encode, [], []

    def counted(self, pixels):
        encoded.append(pixels.shape[2])
        return encode(self, pixels)

    streaming.LoadedEncoder.encode = counted
    found = {}
    for strength in (0.0, 0.5):
        kept = rollout(model, video=images, strength=strength, vae=vae, seconds=3.0)[0]
        with Writes(lambda count: count == 1 and at_first.append(len(encoded))) as written:
            _, memory, report = to_video(model, vae, video=images, strength=strength, seconds=3.0)
        found[str(strength)] = (written.frames.int() - decoded(kept, vae).int()).abs().max().item()
    path = folder / "in.mp4"
    with part("salt.io.video").VideoWriter(path, fps=8) as video:
        video.write((images[:12] * 255).round().to(torch.uint8).numpy())
    video, seen = part("nodes.adapter.core_versions").video_of(path), part("salt.io.video").read_video(path)
    file = rollout(model, video=video, strength=0.0, vae=vae)[0]["samples"]
    expected = vae.encode((seen[0].movedim(0, -1)[:21] + 1) / 2)
    return found | {
        "at first": at_first[0],
        "frames": [memory.memory.next_frame, len(written.frames)],
        "report": report.rpartition("; ")[2],
        "file": [file.shape[2], error(file, expected)],
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
    run_case(strengths, videos, to_file, refusals)
