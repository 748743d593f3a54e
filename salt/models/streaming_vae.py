"""Streaming decode with Wan's VAE, block by block, and encoding of video starts.

Each call of `decode` continues the clip of the call before it, so the frames of all calls, concatenated, are those of
one decode of the whole clip: Wan's VAE is causal, and all it needs of the past is a cache of two frames per
convolution. The cache belongs to the decoder, not to the VAE, so that many decoders may share one VAE.

Layouts: latents [B, C, F, H, W] in normalised model space, pixels [B, 3, T, H, W] in [-1, 1], float32.
The first latent frame of a clip is one pixel frame, every later one is `temporal_scale` of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from ..acceleration.free_memory import free_bytes
from ..acceleration.transfers import to_device, to_main_memory
from ..errors import InputError


class FrameDecoder(Protocol):
    """A streaming decoder: `WanStreamDecoder` here, and `salt.models.taehv.TinyStreamDecoder`."""

    spatial_scale: int
    temporal_scale: int

    def reset(self) -> None:
        """Forget the clip so far: the next call of `decode` starts a new one."""
        ...

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """The next F >= 1 latent frames of the clip -> their pixels [B, 3, T, H*s, W*s]."""
        ...

    def fork(self) -> FrameDecoder:
        """A decoder that goes on from here on its own, with what it needs of the past in main memory until then."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of the past."""
        ...


@dataclass(frozen=True)
class Tiling:
    """Spatial tiles for frames whose activations do not fit into device memory. size, overlap: pixels, on both axes.

    Each tile has a causal cache of its own. Together they are larger than the untiled cache by the area that lies in
    several tiles. Wan 2.1, 832x480, bfloat16: 1.8 GiB untiled; 12 tiles of 0.29 GiB, 3.5 GiB in all, with the defaults.
    caches: where they are while other tiles are decoded. `cpu`: in pinned main memory, so that the device holds one
    tile's cache and activations whatever the frame's size; each is copied there and back once per call, and the host
    waits for neither. `device`: they stay. `auto`: they stay where twice their size is free. A tile does not see beyond
    its edge, so results differ slightly from untiled ones; neighbours are blended linearly over their overlap.
    """

    size: int = 256
    overlap: int = 64
    caches: Literal["auto", "device", "cpu"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.size // 2:
            expected = f"0 to {self.size // 2} pixels for tiles of {self.size}"
            raise InputError("overlap", f"found {self.overlap}, expected {expected}")


class LatentStream:
    """Checks that the latents of successive calls can be one clip. Used by all decoders."""

    def __init__(self, channels: int):
        self.channels = channels
        self.geometry: tuple[int, int, int] | None = None  # (B, H, W) of the current clip

    def check(self, latents_BCFHW: Tensor) -> None:
        """Raises ValueError unless the shape is [B, C, F >= 1, H, W] with the B, H and W of the calls before."""
        shape = tuple(latents_BCFHW.shape)
        if len(shape) != 5 or shape[1] != self.channels or shape[2] < 1:
            raise ValueError(f"expected latents [B, {self.channels}, F >= 1, H, W], got {list(shape)}")
        geometry = (shape[0], shape[3], shape[4])
        if self.geometry is None:
            self.geometry = geometry
        elif geometry != self.geometry:
            raise ValueError(
                f"this stream decodes latents of batch, height and width {self.geometry}, got {geometry}; "
                "call reset() to start another clip"
            )


@dataclass
class _Tile:
    """One tile of the frame: its place in latent pixels, the weights of its pixels, and its causal cache.

    parked: buffers in pinned main memory, in which the cache lies while other tiles are decoded.
    """

    y: slice
    x: slice
    weight_HW: Tensor
    cache: list[Tensor | str | None]
    parked: list[Tensor | None] = field(default_factory=list)

    def fetch(self, device: torch.device) -> None:
        """Bring the cache to the device, on the current stream."""
        self.cache = [e.to(device, non_blocking=True) if isinstance(e, Tensor) else e for e in self.cache]

    def park(self) -> None:
        """Move the cache to main memory, on the current stream: only work queued behind it may read it."""
        self.parked = self.parked or [None] * len(self.cache)
        for i, entry in enumerate(self.cache):
            if isinstance(entry, Tensor) and entry.is_cuda:
                buffer = self.parked[i]
                if buffer is None or buffer.shape != entry.shape:
                    buffer = self.parked[i] = torch.empty(entry.shape, dtype=entry.dtype, pin_memory=True)
                self.cache[i] = buffer.copy_(entry, non_blocking=True)

    def copied(self) -> _Tile:
        """A tile that goes on from here on its own, its cache in main memory. What is parked is handed over."""
        self.parked = []
        # Entries are replaced by the decoder, never written to.
        cache = [to_main_memory(e) if isinstance(e, Tensor) else e for e in self.cache]
        return replace(self, cache=cache, parked=[])


class WanStreamDecoder:
    """Streaming decode with diffusers' `AutoencoderKLWan`: successive calls of `decode` continue the clip.

    The concatenated output equals `vae.decode` of the whole (denormalised) clip, and memory is flat in clip length:
    one latent frame is decoded at a time. A bfloat16 VAE computes in bfloat16; the output is always float32.
    Raises ValueError for tiles that are not multiples of the VAE's spatial scale.
    """

    def __init__(self, vae: AutoencoderKLWan, tiling: Tiling | None = None):
        self.vae = vae
        self.spatial_scale = int(vae.config["scale_factor_spatial"])
        self.temporal_scale = int(vae.config["scale_factor_temporal"])
        if tiling is not None and (tiling.size % self.spatial_scale or tiling.overlap % self.spatial_scale):
            raise ValueError(f"tile size and overlap must be multiples of {self.spatial_scale} pixels, got {tiling}")
        self.tiling = tiling
        self.reset()

    def reset(self) -> None:
        self._stream = LatentStream(int(self.vae.config["z_dim"]))
        self._tiles: list[_Tile] = []
        self._parked: bool | None = None  # what `auto` has decided for this clip

    @torch.no_grad()
    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """Latents [B, C, F, H, W], normalised -> pixels [B, 3, T, H*s, W*s] in [-1, 1], float32, on the VAE's device.

        T is 4F, or 4F-3 when the call starts the clip. Raises ValueError when the shape is not that of the current
        clip.
        """
        self._stream.check(latents_BCFHW)
        device = onload(self.vae)
        if not self._tiles:
            self._tiles = self._lay_tiles(latents_BCFHW.shape[3], latents_BCFHW.shape[4], device)
            self._statistics = latent_statistics(self.vae, device)
        mean, std = self._statistics
        z = (latents_BCFHW.to(device, torch.float32) * std + mean).to(self.vae.dtype)
        if len(self._tiles) == 1:
            return self._decode_tile(self._tiles[0], z)
        pixels = torch.empty(0)
        for index, tile in enumerate(self._tiles):
            part = self._decode_tile(tile, z[..., tile.y, tile.x])
            if self._parks(device):
                tile.park()
            if index == 0:
                pixels = part.new_zeros(*part.shape[:3], *(n * self.spatial_scale for n in z.shape[3:]))
            y, x = (slice(s.start * self.spatial_scale, s.stop * self.spatial_scale) for s in (tile.y, tile.x))
            pixels[..., y, x] += part * tile.weight_HW
        return pixels

    def fork(self) -> WanStreamDecoder:
        twin = WanStreamDecoder(self.vae, self.tiling)
        twin._stream.geometry = self._stream.geometry
        if self._tiles:
            twin._statistics = self._statistics
        twin._tiles = [tile.copied() for tile in self._tiles]
        return twin

    @property
    def nbytes(self) -> int:
        return sum(e.numel() * e.element_size() for t in self._tiles for e in t.cache if isinstance(e, Tensor))

    def _parks(self, device: torch.device) -> bool:
        """Whether tiles' caches lie in main memory between their turns; decided when the first one is known."""
        if self.tiling is None or device.type != "cuda" or self.tiling.caches == "device":
            return False
        if self.tiling.caches == "auto" and self._parked is None:
            first = sum(e.numel() * e.element_size() for e in self._tiles[0].cache if isinstance(e, Tensor))
            self._parked = free_bytes(device) < 2 * first * len(self._tiles)
        return self.tiling.caches == "cpu" or bool(self._parked)

    def _decode_tile(self, tile: _Tile, z_BCFHW: Tensor) -> Tensor:
        """One latent frame at a time, which keeps activations flat; the first of a clip becomes a single frame."""
        tile.fetch(z_BCFHW.device)
        z_BCFHW = self.vae.post_quant_conv(z_BCFHW)
        frames = []
        for z_BC1HW in z_BCFHW.split(1, dim=2):
            # diffusers' decoder indexes the cache by a counter, moves entries to its device and replaces them.
            first = tile.cache[0] is None
            frames.append(self.vae.decoder(z_BC1HW, feat_cache=tile.cache, feat_idx=[0], first_chunk=first).float())
        pixels = torch.cat(frames, dim=2)
        patch = int(self.vae.config.get("patch_size") or 1)  # Wan 2.2's decoder ends in patches of 2x2 pixels
        return (unpatchify(pixels, patch) if patch > 1 else pixels).clamp_(-1, 1)

    def _lay_tiles(self, height: int, width: int, device: torch.device) -> list[_Tile]:
        scale = self.spatial_scale
        rows, columns = [slice(0, height)], [slice(0, width)]
        if self.tiling is not None:
            size, overlap = self.tiling.size // scale, self.tiling.overlap // scale
            rows, columns = spans(height, size, overlap), spans(width, size, overlap)
        weights_y, weights_x = (blend_weights(windows, scale, device) for windows in (rows, columns))
        entries = sum(isinstance(module, WanCausalConv3d) for module in self.vae.decoder.modules())
        return [
            _Tile(y, x, weight_y[:, None] * weight_x[None, :], cache=[None] * entries)
            for y, weight_y in zip(rows, weights_y, strict=True)
            for x, weight_x in zip(columns, weights_x, strict=True)
        ]


def spans(length: int, size: int, overlap: int) -> list[slice]:
    """The fewest windows of `size` that cover `length` with at least `overlap` between neighbours, evenly spread.

    Every window has its full size, so none at the frame's edge sees less context than the others.
    """
    if length <= size:
        return [slice(0, length)]
    count = math.ceil((length - overlap) / (size - overlap))
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    return [slice(start, start + size) for start in starts]


def blend_weights(windows: list[slice], scale: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """One weight per pixel of each window: linear ramps over the overlaps, summing to 1 at every pixel."""
    ramps = []
    for i, window in enumerate(windows):
        weight = torch.ones((window.stop - window.start) * scale, device=device)
        if i > 0 and (rise := (windows[i - 1].stop - window.start) * scale):
            weight[:rise] *= _ramp(rise, device)
        if i + 1 < len(windows) and (fall := (window.stop - windows[i + 1].start) * scale):
            weight[-fall:] *= _ramp(fall, device).flip(0)
        ramps.append(weight)
    # Evenly spread windows can overlap three times in places; dividing by the sum is correct there too.
    total = torch.zeros(windows[-1].stop * scale, device=device)
    for window, weight in zip(windows, ramps, strict=True):
        total[window.start * scale : window.stop * scale] += weight
    return [weight / total[w.start * scale : w.stop * scale] for w, weight in zip(windows, ramps, strict=True)]


def _ramp(length: int, device: torch.device | str) -> Tensor:
    return (torch.arange(length, device=device) + 0.5) / length


@torch.no_grad()
def encode_video(vae: AutoencoderKLWan, pixels_B3THW: Tensor) -> Tensor:
    """Pixels [B, 3, T, H, W] in [-1, 1] -> normalised latents [B, C, (T-1)/4 + 1, H/8, W/8], float32.

    For image (T = 1) and video starts. The posterior's mode is taken, so the same pixels always give the same latents.
    Raises ValueError when T is not 4n+1, a side is not a multiple of the VAE's spatial scale, or values lie outside
    [-1, 1].
    """
    spatial, temporal = int(vae.config["scale_factor_spatial"]), int(vae.config["scale_factor_temporal"])
    shape = list(pixels_B3THW.shape)
    if len(shape) != 5 or shape[1] != 3:
        raise ValueError(f"expected pixels [B, 3, T, H, W], got {shape}")
    if shape[2] % temporal != 1:
        raise ValueError(f"a video start must have {temporal}n+1 frames (1, 5, 9, ...), got {shape[2]}")
    if shape[3] % spatial or shape[4] % spatial:
        raise ValueError(f"height and width must be multiples of {spatial}, got {shape[3]}x{shape[4]}")
    low, high = (float(v) for v in pixels_B3THW.aminmax())
    if not (low >= -1.01 and high <= 1.01):  # resizing in low precision may overshoot
        raise ValueError(f"expected pixels in [-1, 1], found values from {low:g} to {high:g}")
    return encode_pixels(vae, pixels_B3THW)


@torch.no_grad()
def encode_pixels(vae: AutoencoderKLWan, pixels_B3THW: Tensor) -> Tensor:
    """As `encode_video`, without its checks, which make the host wait for pixels on a GPU."""
    device = onload(vae)
    mean, std = latent_statistics(vae, device)
    encoded: Any = vae.encode(to_device(pixels_B3THW, device).to(vae.dtype))  # diffusers declares a union with a tuple
    return (encoded.latent_dist.mode().float() - mean) / std


def latent_statistics(vae: AutoencoderKLWan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, [1, C, 1, 1, 1] float32: normalised = (z - mean) / std."""
    mean, std = (to_device(torch.tensor(vae.config[name]), device) for name in ("latents_mean", "latents_std"))
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def onload(vae: AutoencoderKLWan) -> torch.device:
    """The device to compute on; where accelerate offloads the VAE, it is moved there first.

    Its hook is on `vae.decode`, which streaming does not call.
    """
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(vae)
    return vae.device
