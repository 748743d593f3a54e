"""What a live session of the command line begins with: a saved memory (--extend), or a picture or video (--image)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .option_types import file_path

if TYPE_CHECKING:
    from ..live.pipeline_host import PipelineHost
    from ..live.start import LiveStart
    from ..pipeline import SaltPipeline


def add_start_arguments(command: argparse.ArgumentParser) -> None:
    start = command.add_argument_group("what it begins with").add_mutually_exclusive_group()
    start.add_argument("--extend", type=file_path, metavar="MEMORY", help="go on from a saved memory")
    start.add_argument("--image", type=file_path, help="picture (or mp4) that the clip starts from")


def host_and_start(
    pipe: SaltPipeline, size: tuple[int, int] | None, extend: Path | None, image: Path | None, policy: str | None
) -> tuple[PipelineHost, LiveStart | None]:
    """The host of a session, and what it begins with. size: width and height; those of a memory by default. policy: of
    the session's memory; the student's by default.

    Raises what loading a memory or picture raises, naming the file, and InputError for a size that does not fit.
    """
    from ..live.pipeline_host import PipelineHost

    if extend is not None:
        start, memory_size = start_of_memory(pipe, extend)
        return PipelineHost(pipe, *(size or memory_size)), start
    host = PipelineHost(pipe, *(size or (None, None)))
    return host, None if image is None else start_of_image(host, image, policy)


def start_of_memory(pipe: SaltPipeline, path: Path) -> tuple[LiveStart, tuple[int, int]]:
    """The clip in a memory file, and its width and height in pixels."""
    from ..live.start import LiveStart
    from ..memory.serialization import has_negative
    from .memory_files import load_clip_memory

    found = load_clip_memory(pipe, path, guided=has_negative(path))
    memory = found["memory"]
    _, patch_height, patch_width = pipe.transformer.config.patch_size
    scale, geometry = pipe.spatial_scale, memory.geometry
    size = (geometry.width * patch_width * scale, geometry.height * patch_height * scale)
    return LiveStart(None, memory, found.get("negative_memory"), found.get("history_latents")), size


def start_of_image(host: PipelineHost, path: Path, policy: str | None) -> LiveStart:
    """The latents of a picture or video, cut to the session's size; a picture stays for as many latent frames as a
    memory that is rebuilt needs."""
    import torch

    from ..live.start import LiveStart
    from ..memory import MemoryPolicy
    from ..models.streaming_vae import encode_video
    from ..pipeline.start_image import held_pixels, start_pixels

    kept = host.info.policy if policy is None else MemoryPolicy.parse(policy)
    pixels = start_pixels(path, (host.info.height, host.info.width), 1, fps=host.pipe.spec.fps)
    pixels = held_pixels(pixels, kept, host.info.temporal_scale)
    with torch.no_grad():
        return LiveStart(encode_video(host.pipe.components_in_use().vae, pixels).to(host.info.device))
