"""Streaming encode against diffusers' whole-clip encode, on small VAEs with random weights, and TAEHV's encoder."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from salt.models.streaming_encode import WanStreamEncoder
from salt.models.streaming_vae import encode_video
from salt.models.taehv import TinyDecoder, load_taehv
from salt.models.taehv_encoder import TinyEncoder, TinyStreamEncoder, load_taehv_encoder


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(7)
    return AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval()


@pytest.fixture(scope="module")
def vae22() -> AutoencoderKLWan:
    """Small, with Wan 2.2's layout: residual blocks, patches of 2x2 pixels, 48 channels, 16 pixels a latent."""
    torch.manual_seed(8)
    return AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=48, num_res_blocks=1, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, latents_mean=[0.1] * 48, latents_std=[1.5] * 48,
    ).eval()  # fmt: skip


def pixels(frames: int, height: int = 32, width: int = 48, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


def in_chunks(encoder, clip: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return torch.cat([encoder.encode(chunk) for chunk in clip.split(sizes, dim=2)], dim=2)


@pytest.mark.parametrize("sizes", [[17], [1, 4, 4, 4, 4], [9, 8], [2, 3, 7, 5], [1] * 17])
def test_concatenated_chunks_equal_the_whole_clip(vae, sizes):
    x = pixels(17, 16, 24, batch=2)
    expected = encode_video(vae, x)
    found = in_chunks(WanStreamEncoder(vae), x, sizes)
    assert found.shape == expected.shape == (2, 16, 5, 2, 3)
    assert found.dtype == torch.float32
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= 1e-5
    tail = WanStreamEncoder(vae).encode(x[:, :, 4:])  # a clip of its own: the encoder without its past
    assert (tail[:, :, -1] - expected[:, :, -1]).abs().max() > 1e-3


def test_vae_of_wan_2_2(vae22):
    x = pixels(13, 32, 64)
    found = in_chunks(WanStreamEncoder(vae22), x, [5, 6, 2])
    assert found.shape == (1, 48, 4, 2, 4)
    assert (found - encode_video(vae22, x)).abs().max() <= 1e-5


def test_frames_that_fill_no_latent_frame_wait(vae):
    encoder = WanStreamEncoder(vae)
    assert [encoder.encode(pixels(n)).shape[2] for n in (1, 3, 1, 2, 6)] == [1, 0, 1, 0, 2]
    encoder.reset()
    assert encoder.encode(pixels(1, 16, 16)).shape == (1, 16, 1, 2, 2)


def test_memory_is_flat_in_clip_length(vae):
    encoder, held = WanStreamEncoder(vae), []
    for _ in range(6):
        encoder.encode(pixels(4, 16, 16))
        held.append(encoder.nbytes)
    assert held[-1] == held[2] > 0


@pytest.mark.parametrize("kind", ["wan", "taehv"])
def test_a_fork_goes_on_by_itself(vae, kind):
    encoder = WanStreamEncoder(vae) if kind == "wan" else TinyStreamEncoder(TinyEncoder())
    x, other = pixels(14, 16, 16), pixels(8, 16, 16)
    encoder.encode(x[:, :, :7])
    twin = encoder.fork()
    assert twin.nbytes == encoder.nbytes
    changed = twin.encode(other)
    rest = encoder.encode(x[:, :, 7:])
    whole = (WanStreamEncoder(vae) if kind == "wan" else TinyStreamEncoder(encoder.model)).encode(x)
    assert torch.allclose(rest, whole[:, :, 2:], atol=1e-5)
    assert not torch.allclose(changed, rest[:, :, : changed.shape[2]], atol=1e-4)


def test_encode_refuses(vae):
    for shape, message in (((1, 3, 0, 32, 32), "T >= 1"), ((1, 3, 1, 30, 32), "of 8 pixels, got 30x32")):
        with pytest.raises(ValueError, match=message):
            WanStreamEncoder(vae).encode(torch.zeros(shape))
    encoder = WanStreamEncoder(vae)
    encoder.encode(pixels(1))
    with pytest.raises(ValueError, match=r"\(1, 32, 48\), got \(1, 32, 32\); call reset"):
        encoder.encode(pixels(1, 32, 32))


def test_taehv_encoder(tmp_path):
    """Against a plain rendition, one pixel frame after the other, with lists of what pooling blocks wait for."""
    weights = {name: 1.5 * x for name, x in TinyEncoder().state_dict().items()}
    path = tmp_path / "taew2_1.pth"
    torch.save(weights | TinyDecoder().state_dict(), path)
    x, last, waiting, expected = pixels(9, 16, 24, batch=2), {}, {2: [], 7: [], 12: []}, []

    def conv(name, frame, **options):
        return F.conv2d(frame, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)

    def run(frame, place=0):
        name = f"encoder.{place}"
        if place == 18:
            expected.append(frame)
        elif place == 1:
            run(frame.relu(), 2)
        elif place in waiting:
            waiting[place].append(frame)
            if len(waiting[place]) == (1 if place == 12 else 2):
                joined = torch.cat(waiting[place], dim=1)
                waiting[place].clear()
                run(conv(f"{name}.conv", joined), place + 1)
        elif place in (3, 8, 13):
            run(conv(name, frame, padding=1, stride=2), place + 1)
        elif place in (0, 17):
            run(conv(name, frame, padding=1), place + 1)
        else:
            h = torch.cat([frame, last.get(place, torch.zeros_like(frame))], dim=1)
            last[place] = frame
            for step in (0, 2):
                h = conv(f"{name}.conv.{step}", h, padding=1).relu()
            run((conv(f"{name}.conv.4", h, padding=1) + frame).relu(), place + 1)

    for frame in [x[:, :, 0]] * 4 + list(x[:, :, 1:].unbind(2)):
        run((frame + 1) / 2)
    whole = torch.stack(expected, dim=2)
    assert whole.shape == (2, 16, 3, 2, 3)
    encoder = TinyStreamEncoder(load_taehv_encoder(path))
    for sizes in ([9], [3, 3, 3]):
        encoder.reset()
        assert torch.allclose(in_chunks(encoder, x, sizes), whole, atol=1e-5)
    load_taehv(path)
    torch.save(TinyDecoder().state_dict(), path)
    with pytest.raises(ValueError, match=r"not a TAEHV encoder for Wan 2.1: encoder.0.weight is missing"):
        load_taehv_encoder(path)
