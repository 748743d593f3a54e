"""The small projector: a tiny autoencoder's decoder, some hundred times cheaper than Wan's, for previews and live use.

The architecture is TAEHV by Ollin Boer Bohan (madebyollin/taehv, MIT licence), written anew here for the one case this
project needs: decoding Wan 2.1 latents with the weights `taew2_1.pth` or `taew2_1.safetensors`.

How it works: every layer is a 2D convolution over single frames. Time enters in two places. A memory block sees, beside
its frame, the frame that came before it at the same depth (zeros at the start of the clip). A growing block turns one
frame into several successive ones. A latent frame thus becomes four pixel frames that depend only on the past, and a
clip can be decoded in pieces if each memory block's last frame is carried along. The first three pixel frames of a
clip are dropped: Wan's first latent frame stands for a single pixel frame.

Layouts: latents [B, C, F, H, W] in normalised model space (this decoder was trained on them as they are), pixels
[B, 3, T, H, W] in [-1, 1]. Inside, x_NCHW holds N = B * T single frames, the time of one clip running fastest.
"""

import pickle
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..io.atomic import require_file
from .streaming_vae import LatentStream

LATENT_CHANNELS = 16
WIDTHS = (256, 128, 64, 64)
# How many frames one becomes, at each of the three stages. Every stage doubles height and width.
GROWTH = (1, 2, 2)


class MemoryBlock(nn.Module):
    """A residual block on a frame and its predecessor, side by side along the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x_NCHW: Tensor, before_NCHW: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.cat([x_NCHW, before_NCHW], dim=1)) + x_NCHW)


class GrowingBlock(nn.Module):
    """One frame becomes `factor` successive frames, by a mix of its channels."""

    def __init__(self, width: int, factor: int):
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(x_NCHW).reshape(-1, self.width, *x_NCHW.shape[2:])


class SoftClamp(nn.Module):
    """Latents beyond about 3 standard deviations are bent back smoothly."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return 3 * torch.tanh(x_NCHW / 3)


def _conv(n_in: int, n_out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, bias=bias)


class TinyDecoder(nn.Module):
    """The network. Its state dict has the keys of the file's decoder half: `decoder.<place>.<...>`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftClamp(), _conv(LATENT_CHANNELS, WIDTHS[0]), nn.ReLU()]
        for (width, next_width), factor in zip(pairwise(WIDTHS), GROWTH, strict=True):
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), GrowingBlock(width, factor), _conv(width, next_width, bias=False)]
        layers += [nn.ReLU(), _conv(WIDTHS[-1], 3)]
        self.decoder = nn.ModuleList(layers)

    def forward(self, latents_BCFHW: Tensor, carried: dict[int, Tensor]) -> Tensor:
        """Latents [B, 16, F, H, W] -> frames [B, 3, 4F, 8H, 8W], about [0, 1], before the start is trimmed.

        `carried` maps a memory block's place to the last frame it saw, [B, C, h, w]; it is read and then replaced.
        An empty one is the start of a clip.
        """
        batch = latents_BCFHW.shape[0]
        x_NCHW = latents_BCFHW.transpose(1, 2).flatten(0, 1)
        for place, layer in enumerate(self.decoder):
            if isinstance(layer, MemoryBlock):
                x_BTCHW = x_NCHW.unflatten(0, (batch, -1))
                last = carried.get(place, torch.zeros_like(x_BTCHW[:, 0]))
                before_BTCHW = torch.cat([last[:, None], x_BTCHW[:, :-1]], dim=1)
                carried[place] = x_BTCHW[:, -1].clone()  # a view would keep the whole piece alive
                x_NCHW = layer(x_NCHW, before_BTCHW.flatten(0, 1))
            else:
                x_NCHW = layer(x_NCHW)
        return x_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)


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
        self._carried: dict[int, Tensor] = {}

    @torch.no_grad()
    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """Latents [B, 16, F, H, W], normalised -> pixels [B, 3, T, 8H, 8W] in [-1, 1], float32, on the model's device.

        T is 4F, or 4F-3 when the call begins the clip. Raises ValueError when the shape is not that of the clip
        under way.
        """
        self._stream.check(latents_BCFHW)
        weight = next(self.model.parameters())
        latents_BCFHW = latents_BCFHW.to(weight.device, weight.dtype)
        trim = 0 if self._carried else self.temporal_scale - 1
        pieces = [self.model(frame, self._carried).float() for frame in latents_BCFHW.split(1, dim=2)]
        return torch.cat(pieces, dim=2)[:, :, trim:].clamp_(0, 1).mul_(2).sub_(1)


def load_taehv(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TinyDecoder:
    """Reads `taew2_1.pth` (weights only, nothing in it is run) or `taew2_1.safetensors`; the encoder half is left out.

    Raises ValueError when the file cannot be read as weights, or when they are not this architecture's. The weights
    for Hunyuan Video (`taehv.pth`) have the same shapes and cannot be told apart.
    """
    path = Path(path)
    found = _read(path)
    with torch.device("meta"):
        model = TinyDecoder()
    expected = model.state_dict()
    weights = {name: tensor for name, tensor in found.items() if name.startswith("decoder.")}
    for name, tensor in expected.items():
        if name not in weights:
            raise ValueError(f"{path}: not a TAEHV decoder for Wan 2.1: {name} is missing")
        # Files may keep a growing block wider than the network grows there; the last frame's channels are used.
        if isinstance(model.get_submodule(name.rsplit(".", 2)[0]), GrowingBlock) and weights[name].ndim == 4:
            weights[name] = weights[name][-tensor.shape[0] :]
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: not a TAEHV decoder for Wan 2.1: {name} has shape {list(weights[name].shape)}, "
                f"expected {list(tensor.shape)}"
            )
    if unknown := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{path}: not a TAEHV decoder for Wan 2.1: it also holds {unknown[0]}")
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in weights.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    require_file(path, "TAEHV weights such as taew2_1.pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        # torch takes bytes that are no zip for an old pickle, and then stumbles over them in any of these ways.
        # Nor is torch's advice to trust the file any help.
        reason = type(error).__name__ if "weights_only" in str(error) or not str(error) else str(error).splitlines()[0]
        raise ValueError(f"{path}: cannot be read as weights ({reason})") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}")
    return found
