"""TAEHV's encoder half: a cheap, less faithful stand-in for Wan's encoder, for video that is changed while it plays.

The architecture is by Ollin Boer Bohan (madebyollin/taehv, MIT licence), reimplemented here; weights `taew2_1.pth` or
`taew2_1.safetensors`. Every layer is a 2D convolution over single frames; a memory block also sees the previous frame
at its depth, and a pooling block makes one frame of two successive ones. The first pixel frame of a clip stands for
four, as Wan's first latent frame is a single pixel frame: the decoder drops the three others again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..acceleration.transfers import to_main_memory
from .pixel_stream import PixelStream
from .taehv import LATENT_CHANNELS, MemoryBlock, conv3x3, load_half, over_frames

WIDTH = 64
FRAMES_POOLED = (2, 2, 1)  # at each of the three stages; every stage halves height and width


class PoolingBlock(nn.Module):
    """`factor` successive frames become one, by a mix of their channels."""

    def __init__(self, width: int, factor: int):
        super().__init__()
        self.channels = width * factor
        self.conv = nn.Conv2d(width * factor, width, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(x_NCHW.reshape(-1, self.channels, *x_NCHW.shape[2:]))


class TinyEncoder(nn.Module):
    """The network. Its state dict has the keys of the file's encoder half: `encoder.<index>.<...>`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3x3(3, WIDTH), nn.ReLU()]
        for factor in FRAMES_POOLED:
            layers += [PoolingBlock(WIDTH, factor), conv3x3(WIDTH, WIDTH, bias=False, stride=2)]
            layers += [MemoryBlock(WIDTH) for _ in range(3)]
        self.encoder = nn.ModuleList([*layers, conv3x3(WIDTH, LATENT_CHANNELS)])

    def forward(self, pixels_B3THW: Tensor, last_frames: dict[int, Tensor]) -> Tensor:
        """Pixels [B, 3, 4F, H, W] in [0, 1] -> latents [B, 16, F, H/8, W/8].

        last_frames: by a memory block's index, the last frame it saw [B, C, h, w]; read, then replaced. Empty at the
        start of a clip.
        """
        return over_frames(self.encoder, pixels_B3THW, last_frames)


class TinyStreamEncoder:
    """Streaming encode with TAEHV: successive calls of `encode` continue the clip, memory is flat in its length.

    A `salt.models.pixel_stream.FrameEncoder`. model: from `load_taehv_encoder`. Source: madebyollin/taehv.
    """

    spatial_scale = 8
    temporal_scale = 4

    def __init__(self, model: TinyEncoder):
        self.model = model
        self.reset()

    def reset(self) -> None:
        self._stream = PixelStream(self.spatial_scale, self.temporal_scale)
        self._last_frames: dict[int, Tensor] = {}

    @torch.no_grad()
    def encode(self, pixels_B3THW: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [-1, 1] -> latents [B, 16, F, H/8, W/8], float32, on the model's device.

        As `WanStreamEncoder.encode`, which also says what is refused.
        """
        groups = self._stream.groups(pixels_B3THW)
        weight = next(self.model.parameters())
        batch, _, _, height, width = pixels_B3THW.shape
        scale = self.spatial_scale
        frames = [torch.empty(batch, LATENT_CHANNELS, 0, height // scale, width // scale, device=weight.device)]
        for group in groups:
            pixels = group.to(weight.device, weight.dtype).add(1).div(2).expand(-1, -1, self.temporal_scale, -1, -1)
            frames.append(self.model(pixels, self._last_frames).float())
        return torch.cat(frames, dim=2)

    def fork(self) -> TinyStreamEncoder:
        twin = TinyStreamEncoder(self.model)
        twin._stream = self._stream.copied()
        twin._last_frames = {index: to_main_memory(frame) for index, frame in self._last_frames.items()}
        return twin

    @property
    def nbytes(self) -> int:
        return self._stream.nbytes + sum(x.numel() * x.element_size() for x in self._last_frames.values())


def load_taehv_encoder(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TinyEncoder:
    """Load the encoder half of `taew2_1.pth` or `taew2_1.safetensors`; errors as of `load_taehv`."""
    with torch.device("meta"):
        model = TinyEncoder()
    load_half(model, path, "encoder", device, dtype)
    return model.eval().requires_grad_(False)
