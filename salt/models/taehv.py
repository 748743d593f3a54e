"""TAEHV: the decoder of a tiny autoencoder, about a hundred times cheaper than Wan's, for previews and live use.

The architecture is by Ollin Boer Bohan (madebyollin/taehv, MIT licence), reimplemented here for decoding Wan 2.1
latents with the weights `taew2_1.pth` or `taew2_1.safetensors`.

Every layer is a 2D convolution over single frames. Time enters in two places: a memory block also sees the previous
frame at the same depth (zeros at the start of the clip), and a growing block turns one frame into several successive
ones. So a latent frame becomes four pixel frames that depend only on the past, and a clip can be decoded in pieces if
each memory block's last frame is kept. The first three pixel frames of a clip are dropped: Wan's first latent frame is
a single pixel frame.

Layouts: latents [B, C, F, H, W] in normalised model space (this decoder was trained on them without denormalising),
pixels [B, 3, T, H, W] in [-1, 1]. Inside, x_NCHW holds N = B * T single frames, the time of one clip running fastest.
"""

import pickle
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..acceleration.transfers import to_main_memory
from ..io.atomic import require_file
from ..io.torch_archive import check_archive, check_tensors
from .streaming_vae import LatentStream

LATENT_CHANNELS = 16
WIDTHS = (256, 128, 64, 64)
# Frames that one frame becomes at each of the three stages. Every stage doubles height and width.
FRAMES_PER_STAGE = (1, 2, 2)


class MemoryBlock(nn.Module):
    """A residual block on a frame and its predecessor, side by side along the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(2 * width, width), nn.ReLU(), conv3x3(width, width), nn.ReLU(), conv3x3(width, width)
        )

    def forward(self, x_NCHW: Tensor, before_NCHW: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.cat([x_NCHW, before_NCHW], dim=1)) + x_NCHW)

    def over_time(self, x_NCHW: Tensor, batch: int, last_frames: dict[int, Tensor], index: int) -> Tensor:
        """Successive frames of `batch` clips; the last one is kept as `last_frames[index]`, where that of the frames
        before is read."""
        x_BTCHW = x_NCHW.unflatten(0, (batch, -1))
        last = last_frames.get(index, torch.zeros_like(x_BTCHW[:, 0])).to(x_BTCHW.device)
        before_BTCHW = torch.cat([last[:, None], x_BTCHW[:, :-1]], dim=1)
        last_frames[index] = x_BTCHW[:, -1].clone()  # a view would keep all frames alive
        return self(x_NCHW, before_BTCHW.flatten(0, 1))


class GrowingBlock(nn.Module):
    """One frame becomes `factor` successive frames, by a mix of its channels."""

    def __init__(self, width: int, factor: int):
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(x_NCHW).reshape(-1, self.width, *x_NCHW.shape[2:])


class SoftClamp(nn.Module):
    """Smoothly limits latents to 3 standard deviations."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return 3 * torch.tanh(x_NCHW / 3)


def conv3x3(n_in: int, n_out: int, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias, stride=stride)


def over_frames(layers: nn.ModuleList, x_BCTHW: Tensor, last_frames: dict[int, Tensor]) -> Tensor:
    """[B, C, T, H, W] through layers that see one frame at a time, memory blocks also the frame before.

    last_frames: by a memory block's index, the last frame it saw [B, C, h, w]; read, then replaced.
    """
    batch = x_BCTHW.shape[0]
    x_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
    for index, layer in enumerate(layers):
        if isinstance(layer, MemoryBlock):
            x_NCHW = layer.over_time(x_NCHW, batch, last_frames, index)
        else:
            x_NCHW = layer(x_NCHW)
    return x_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)


class TinyDecoder(nn.Module):
    """The network. Its state dict has the keys of the file's decoder half: `decoder.<index>.<...>`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftClamp(), conv3x3(LATENT_CHANNELS, WIDTHS[0]), nn.ReLU()]
        for (width, next_width), factor in zip(pairwise(WIDTHS), FRAMES_PER_STAGE, strict=True):
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), GrowingBlock(width, factor), conv3x3(width, next_width, bias=False)]
        layers += [nn.ReLU(), conv3x3(WIDTHS[-1], 3)]
        self.decoder = nn.ModuleList(layers)

    def forward(self, latents_BCFHW: Tensor, last_frames: dict[int, Tensor]) -> Tensor:
        """Latents [B, 16, F, H, W] -> frames [B, 3, 4F, 8H, 8W], about [0, 1], before the start is trimmed.

        last_frames: by a memory block's index, the last frame it saw [B, C, h, w]; read, then replaced. Empty at the
        start of a clip.
        """
        return over_frames(self.decoder, latents_BCFHW, last_frames)


class TinyStreamDecoder:
    """Streaming decode with TAEHV: successive calls of `decode` continue the clip, memory is flat in its length.

    A `salt.models.streaming_vae.FrameDecoder`. model: from `load_taehv`. Source: madebyollin/taehv.
    """

    spatial_scale = 8
    temporal_scale = 4

    def __init__(self, model: TinyDecoder):
        self.model = model
        self.reset()

    def reset(self) -> None:
        self._stream = LatentStream(LATENT_CHANNELS)
        self._last_frames: dict[int, Tensor] = {}

    def fork(self) -> "TinyStreamDecoder":
        twin = TinyStreamDecoder(self.model)
        twin._stream.geometry = self._stream.geometry
        twin._last_frames = {index: to_main_memory(frame) for index, frame in self._last_frames.items()}
        return twin

    @property
    def nbytes(self) -> int:
        return sum(frame.numel() * frame.element_size() for frame in self._last_frames.values())

    @torch.no_grad()
    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """Latents [B, 16, F, H, W], normalised -> pixels [B, 3, T, 8H, 8W] in [-1, 1], float32, on the model's device.

        T is 4F, or 4F-3 when the call starts the clip. Raises ValueError when the shape is not that of the current
        clip.
        """
        self._stream.check(latents_BCFHW)
        weight = next(self.model.parameters())
        latents_BCFHW = latents_BCFHW.to(weight.device, weight.dtype)
        trim = 0 if self._last_frames else self.temporal_scale - 1
        pieces = [self.model(frame, self._last_frames).float() for frame in latents_BCFHW.split(1, dim=2)]
        return torch.cat(pieces, dim=2)[:, :, trim:].clamp_(0, 1).mul_(2).sub_(1)


def load_taehv(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TinyDecoder:
    """Load `taew2_1.pth` (weights only: no code in it runs) or `taew2_1.safetensors`, without the encoder half.

    Raises ValueError when the file cannot be read as weights, or when they are not this architecture's. The weights
    for Hunyuan Video (`taehv.pth`) have the same shapes and cannot be told apart.
    """
    with torch.device("meta"):
        model = TinyDecoder()
    load_half(model, path, "decoder", device, dtype)
    return model.eval().requires_grad_(False)


def load_half(
    model: nn.Module,
    path: str | Path,
    half: Literal["encoder", "decoder"],
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Give a model the weights of one half of a file; raises ValueError as `load_taehv` says."""
    path = Path(path)
    found = _read(path)
    expected = model.state_dict()
    weights = {name: tensor for name, tensor in found.items() if name.startswith(f"{half}.")}
    where = f"{path}: not a TAEHV {half} for Wan 2.1"
    for name, tensor in expected.items():
        if name not in weights:
            raise ValueError(f"{where}: {name} is missing")
        # A file's growing block may have more frames than the network uses there; the last frames' channels are used.
        if isinstance(model.get_submodule(name.rsplit(".", 2)[0]), GrowingBlock) and weights[name].ndim == 4:
            weights[name] = weights[name][-tensor.shape[0] :]
        if weights[name].shape != tensor.shape:
            raise ValueError(f"{where}: {name} has shape {list(weights[name].shape)}, expected {list(tensor.shape)}")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{where}: unexpected {unknown[0]}")
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in weights.items()}, assign=True)


def _read(path: Path) -> dict[str, Tensor]:
    require_file(path, "TAEHV weights such as taew2_1.pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, dict):
            check_tensors(found, path.stat().st_size)
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        ValueError,
    ) as error:
        # torch reads bytes that are not a zip file as an old pickle, which fails in any of these ways. Its advice to
        # load with weights_only=False is not passed on.
        reason = (
            type(error).__name__ if "weights_only" in str(error) or not str(error) else str(error).splitlines()[0][:200]
        )
        raise ValueError(f"{path}: cannot be read as weights ({reason})") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return found
