"""Streaming decode against diffusers' whole-clip decode, on a small VAE with random weights."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from salt.models.streaming_vae import Tiling, WanStreamDecoder, blend_weights, encode_video, latent_statistics, spans


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(7)
    return AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval()


def latents(frames: int, height: int = 4, width: int = 6, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, frames, height, width)


@torch.no_grad()
def whole_clip(vae: AutoencoderKLWan, latents_BCFHW: torch.Tensor) -> torch.Tensor:
    mean, std = latent_statistics(vae, torch.device("cpu"))
    return vae.decode(latents_BCFHW * std + mean, return_dict=False)[0]


def in_blocks(decoder: WanStreamDecoder, latents_BCFHW: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return torch.cat([decoder.decode(block) for block in latents_BCFHW.split(sizes, dim=2)], dim=2)


@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1, 1, 5], [1] * 7])
def test_concatenated_blocks_equal_the_whole_clip(vae, sizes):
    x = latents(7, batch=2)
    expected = whole_clip(vae, x)
    found = in_blocks(WanStreamDecoder(vae), x, sizes)
    assert found.shape == (2, 3, 4 * 7 - 3, 32, 48)
    assert expected.std() > 0.01  # a constant picture would equal anything
    assert (found - expected).abs().max() <= 1e-4
    # Without the decoder's cache, blocks decoded as separate clips differ (and have fewer frames).
    if len(sizes) > 1:
        tail = WanStreamDecoder(vae).decode(x[:, :, sizes[0] :])
        assert (tail[:, :, -4:] - expected[:, :, -4:]).abs().max() > 1e-3


@pytest.mark.parametrize("tiling", [None, Tiling(64, 32)])
def test_vae_of_wan_2_2(tiling):
    """Residual blocks, patches of 2x2 pixels, 48 channels, 16 pixels a latent."""
    torch.manual_seed(8)
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=48, num_res_blocks=1, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, latents_mean=[0.1] * 48, latents_std=[1.5] * 48,
    ).eval()  # fmt: skip
    x = torch.randn(1, 48, 5, 4, 6)
    expected = whole_clip(vae, x)
    found = in_blocks(WanStreamDecoder(vae, tiling), x, [2, 1, 2])
    assert found.shape == expected.shape == (1, 3, 17, 64, 96)
    assert expected.std() > 0.01
    if tiling is None:
        assert (found - expected).abs().max() <= 1e-4


def test_each_call_returns_its_frames(vae):
    decoder = WanStreamDecoder(vae)
    x = latents(3)
    assert [decoder.decode(x).shape[2] for _ in range(3)] == [9, 12, 12]
    decoder.reset()
    assert decoder.decode(x).shape[2] == 9


def test_two_streams_share_one_vae(vae):
    a, b = latents(4), latents(4)
    left, right = WanStreamDecoder(vae), WanStreamDecoder(vae)
    pairs = [(left.decode(a[:, :, f : f + 1]), right.decode(b[:, :, f : f + 1])) for f in range(4)]
    for stream, x in enumerate((a, b)):
        found = torch.cat([pair[stream] for pair in pairs], dim=2)
        assert (found - whole_clip(vae, x)).abs().max() <= 1e-4


def test_reset_starts_a_new_clip(vae):
    decoder = WanStreamDecoder(vae)
    x = latents(2)
    first = decoder.decode(x)
    assert not torch.equal(decoder.decode(x)[:, :, -4:], first[:, :, -4:])
    decoder.reset()
    assert torch.equal(decoder.decode(x), first)
    decoder.reset()
    decoder.decode(latents(1, height=8, width=8))  # and with it its shape


@pytest.mark.parametrize("tiling", [None, Tiling(32, 16)])
def test_cache_size_is_constant_in_clip_length(vae, tiling):
    decoder = WanStreamDecoder(vae, tiling)
    sizes = []
    for _ in range(5):
        decoder.decode(latents(1, 6, 6))
        entries = (entry for tile in decoder._tiles for entry in tile.cache if isinstance(entry, torch.Tensor))
        sizes.append(sum(entry.nbytes for entry in entries))
    assert sizes[-1] == sizes[2] > 0


def test_bfloat16_vae_gives_float32_pixels(vae):
    half = AutoencoderKLWan(base_dim=8, num_res_blocks=1)
    half.load_state_dict(vae.state_dict())
    half.to(torch.bfloat16)
    x = latents(3)
    found = WanStreamDecoder(half).decode(x)
    assert found.dtype == torch.float32
    assert (found - whole_clip(vae, x)).abs().mean() < 0.02
    start = encode_video(half, found.clamp(-1, 1))
    assert start.dtype == torch.float32
    assert start.shape == x.shape


def test_one_tile_for_the_whole_frame_changes_nothing(vae):
    x = latents(3)
    assert torch.equal(WanStreamDecoder(vae, Tiling(64, 16)).decode(x), WanStreamDecoder(vae).decode(x))


def test_tiled_streaming_equals_tiled_whole_clip_decoding(vae):
    x = latents(5, 12, 10)
    one_go = WanStreamDecoder(vae, Tiling(64, 32)).decode(x)
    blocks = in_blocks(WanStreamDecoder(vae, Tiling(64, 32)), x, [2, 3])
    assert one_go.shape == (1, 3, 17, 96, 80)
    assert (one_go - blocks).abs().max() <= 1e-5


def test_tiles_stay_close_to_the_untiled_decode(vae):
    """On a smooth clip, closer than diffusers' own tiles of the same size and overlap.

    The bound itself is loose: a decoder with random weights looks much farther than a trained one.
    """
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 14), torch.linspace(-1, 1, 14), indexing="ij")
    x = (rows + columns)[None, None, None] * torch.randn(1, 16, 2, 1, 1)
    untiled = whole_clip(vae, x)
    ours = (WanStreamDecoder(vae, Tiling(64, 32)).decode(x) - untiled).abs().mean()
    vae.enable_tiling(64, 64, 32, 32)
    try:
        theirs = (whole_clip(vae, x) - untiled).abs().mean()
    finally:
        vae.disable_tiling()
    assert 0 < ours < theirs
    assert ours < 0.5 * untiled.std()


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(60, 32, 8), (57, 32, 8), (33, 32, 16), (104, 32, 4), (9, 4, 0)]
)
def test_windows_cover_and_weights_sum_to_one(length, size, overlap):
    windows = spans(length, size, overlap)
    assert windows[0].start == 0
    assert windows[-1].stop == length
    assert all(w.stop - w.start == size for w in windows)
    assert all(a.stop - b.start >= overlap for a, b in zip(windows, windows[1:], strict=False))
    total = torch.zeros(length * 8)
    for window, weight in zip(windows, blend_weights(windows, 8), strict=True):
        assert (weight > 0).all()
        total[window.start * 8 : window.stop * 8] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


@pytest.mark.parametrize("frames", [1, 5])
def test_encode_returns_the_normalised_mode(vae, frames):
    pixels = torch.rand(1, 3, frames, 32, 48) * 2 - 1
    found = encode_video(vae, pixels)
    mean, std = latent_statistics(vae, torch.device("cpu"))
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode()
    assert found.shape == (1, 16, (frames - 1) // 4 + 1, 4, 6)
    assert torch.allclose(found * std + mean, expected, atol=1e-5)
    assert torch.equal(found, encode_video(vae, pixels))


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [
        ((1, 3, 4, 32, 32), 1, "4n.1 frames .* got 4"),
        ((1, 3, 1, 30, 32), 1, "multiples of 8, got 30x32"),
        ((1, 1, 1, 32, 32), 1, r"\[B, 3, T, H, W\], got \[1, 1"),
        ((3, 1, 32, 32), 1, r"got \[3, 1, 32, 32\]"),
        ((1, 3, 1, 32, 32), 255, r"pixels in \[-1, 1\], found"),
    ],
)
def test_encode_refuses(vae, shape, scale, message):
    with pytest.raises(ValueError, match=message):
        encode_video(vae, torch.rand(shape) * scale)


def test_decode_refuses_latents_of_another_shape(vae):
    decoder = WanStreamDecoder(vae)
    with pytest.raises(ValueError, match=r"\[B, 16, F >= 1, H, W\], got \[1, 8, 1, 4, 4\]"):
        decoder.decode(torch.zeros(1, 8, 1, 4, 4))
    decoder.decode(latents(1))
    with pytest.raises(ValueError, match=r"\(1, 4, 6\), got \(2, 4, 6\).*reset"):
        decoder.decode(latents(1, batch=2))


def test_bad_tiling_is_refused(vae):
    with pytest.raises(ValueError, match="overlap: found 40, expected 0 to 32 pixels"):
        Tiling(64, 40)
    with pytest.raises(ValueError, match="multiples of 8"):
        WanStreamDecoder(vae, Tiling(60, 20))


class _Parked:
    """Replacement for accelerate's offload hook that counts its calls."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def test_an_offloaded_vae_is_loaded(vae):
    vae._hf_hook = hook = _Parked()
    try:
        WanStreamDecoder(vae).decode(latents(1))
    finally:
        del vae._hf_hook
    assert hook.calls == 1
