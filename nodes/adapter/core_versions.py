"""What differs between the versions of ComfyUI that the pack runs on, 0.3.64 to 0.33, and what each of them has.

A difference is found by looking for what it is about, never by a version's number: development versions and forks lie
between releases. Other modules of the pack call these functions and ask for no version.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor, nn

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE
    from comfy_api.latest import InputImpl


def page_options(**entries: Any) -> dict[str, Any]:
    """Arguments of an input with which its definition tells the page more. Lists of 0.3.64 take none."""
    return {"extra_dict": entries} if "extra_dict" in inspect.signature(io.Combo.Input).parameters else {}


# Arguments of inputs that few need, which front ends fold away. ComfyUI before 0.9 does not know this one.
KNOWS_ADVANCED = "advanced" in inspect.signature(io.Int.Input).parameters
ADVANCED: dict[str, Any] = {"advanced": True} if KNOWS_ADVANCED else page_options(advanced=True)


def schema(**settings: Any) -> io.Schema:
    """io.Schema without the fields that this ComfyUI does not have yet (search aliases before 0.9)."""
    known = {f.name for f in dataclasses.fields(io.Schema)}
    return io.Schema(**{key: value for key, value in settings.items() if key in known})


def model_from_state(
    state: dict[str, Tensor], metadata: dict[str, str], options: dict[str, Any], disable_dynamic: bool
) -> ModelPatcher | None:
    """ComfyUI's loader for weights in memory. Older versions see shapes only and have no dynamic loading."""
    import comfy.sd

    load = comfy.sd.load_diffusion_model_state_dict
    arguments = {"metadata": metadata, "disable_dynamic": disable_dynamic}
    known = inspect.signature(load).parameters
    return load(state, model_options=options, **{k: v for k, v in arguments.items() if k in known})


def misread(state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """What this ComfyUI reads otherwise than `comfy_metadata` says, in words; "" where it reads all of it.

    0.8 and older go by the weights' shapes, from which the number of heads does not follow.
    """
    from comfy.model_detection import detect_unet_config

    wanted = json.loads(metadata["config"])["transformer"]
    wanted.pop("causal_ar", None)  # a class of core's own, which older versions do without
    if not wanted:  # as of every released model: its shapes say all
        return ""
    known = inspect.signature(detect_unet_config).parameters
    read = detect_unet_config(state, "", **({"metadata": metadata} if "metadata" in known else {})) or {}
    return ", ".join(f"{key} {value}" for key, value in wanted.items() if read.get(key) != value)


def file_of(model: ModelPatcher) -> Path | None:
    """The file that a loader has read a MODEL from, as it tells ComfyUI so that it can be read again; None where it
    does not (older versions of ComfyUI) or the file is gone."""
    again = getattr(model, "cached_patcher_init", None)
    source = again[1][0] if again is not None and again[1] else None
    path = Path(source) if isinstance(source, (str, Path)) else None
    return path if path is not None and path.is_file() else None


def narrow_vae(state: dict[str, Tensor]) -> VAE:
    """A native VAE of weights that may be narrower than Wan's. ComfyUI before 0.8 reads their width nowhere: there the
    class that it builds gets it while it builds."""
    import comfy.ldm.wan.vae as wan
    import comfy.sd

    core_class, width = wan.WanVAE, state["decoder.head.0.gamma"].shape[0]

    def of_width(**config: Any) -> nn.Module:
        return core_class(**{**config, "dim": width})

    wan.WanVAE = of_width
    try:
        return comfy.sd.VAE(sd=state)
    finally:
        wan.WanVAE = core_class


def joined_frames(decoded: Tensor | list[Tensor]) -> Tensor:
    """What Wan's decoder has returned, as one tensor: newer versions return the frames of a call in parts."""
    return torch.cat(decoded, dim=2) if isinstance(decoded, list) else decoded


def at_once(encoder: torch.nn.Module) -> dict[str, bool]:
    """Arguments with which Wan's encoder returns a frame as soon as its pixels are there; newer versions hold a single
    one back until a second has come."""
    return {"final": True} if "final" in inspect.signature(encoder.forward).parameters else {}


def as_video(images: Tensor, fps: float) -> InputImpl.VideoFromComponents:
    """A VIDEO of images [T, H, W, 3], which are not copied."""
    try:
        from comfy_api.latest import InputImpl, Types

        video, components = InputImpl.VideoFromComponents, Types.VideoComponents
    except ImportError:  # before 0.4
        from comfy_api.input_impl import VideoFromComponents as video
        from comfy_api.util import VideoComponents as components
    return video(components(images=images, audio=None, frame_rate=Fraction(fps).limit_denominator(1001)))


def video_of(path: Path) -> InputImpl.VideoFromFile:
    """A file as a VIDEO."""
    return _video_file()(str(path))


def _video_file() -> type[InputImpl.VideoFromFile]:
    try:
        from comfy_api.latest import InputImpl

        return InputImpl.VideoFromFile
    except ImportError:  # before 0.4
        from comfy_api.input_impl import VideoFromFile

        return VideoFromFile


def whole_file(video: InputImpl.VideoFromComponents | InputImpl.VideoFromFile) -> Path | None:
    """The file that a VIDEO is, uncut; None for frames in memory and for parts of a file, which newer versions have."""
    if not isinstance(video, _video_file()):
        return None
    source, window = video.get_stream_source(), getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
    return Path(source) if isinstance(source, str) and not any(window) else None


def executing_node() -> str:
    """Id of the node that ComfyUI executes, as `12`, or `4:12` in a subgraph; "" outside of a queued prompt."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:  # before 0.3.48
        return ""
    context = get_executing_context()
    return "" if context is None else str(context.node_id)


@contextmanager
def without_cuda_graphs() -> Iterator[None]:
    """While open, ComfyUI (0.33 on) captures no block of a model as a CUDA graph, as `--disable-cuda-graphs` has it.

    A graph repeats one call with the memory, positions and lengths that it was captured with. 0.33 itself captures
    blocks of text encoders only.
    """
    from comfy.cli_args import args

    if not hasattr(args, "disable_cuda_graphs"):
        yield
        return
    before = args.disable_cuda_graphs
    args.disable_cuda_graphs = True
    try:
        yield
    finally:
        args.disable_cuda_graphs = before
