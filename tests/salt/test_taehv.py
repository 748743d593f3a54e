"""TAEHV: streaming compared with a plain frame-by-frame implementation of the same network, and its files.

The network was also checked beside madebyollin/taehv itself, on random weights: equal to the last bit.
"""

import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from salt.models.taehv import TinyDecoder, TinyStreamDecoder, load_taehv


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights, scaled so that pixels lie on both sides of the [0, 1] they are clamped to."""
    torch.manual_seed(3)
    found = {name: 1.6 * tensor for name, tensor in TinyDecoder().state_dict().items()}
    found["decoder.22.bias"] += 0.4
    found["encoder.0.weight"] = torch.zeros(64, 3, 3, 3)  # the file has an encoder too
    return found


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("taehv") / "taew2_1.pth"
    torch.save(weights, path)
    return path


class FrameByFrame:
    """A plain implementation of the network: takes one latent frame, returns the frames it decodes to."""

    def __init__(self, weights):
        self.weights = weights
        self.last = {}

    def conv(self, name, x, padding=1):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), padding=padding)

    def run(self, x, place=0):
        if place == 23:
            return [x]
        name = f"decoder.{place}"
        if place == 0:
            frames = [torch.tanh(x / 3) * 3]
        elif place in (2, 21):
            frames = [x.relu()]
        elif place in (6, 12, 18):
            frames = [x.repeat_interleave(2, -1).repeat_interleave(2, -2)]
        elif place in (7, 13, 19):
            frames = list(self.conv(f"{name}.conv", x, padding=0).split(x.shape[1], dim=1))
        elif f"{name}.conv.0.weight" in self.weights:
            h = torch.cat([x, self.last.get(place, torch.zeros_like(x))], dim=1)
            self.last[place] = x
            for step in (0, 2):
                h = self.conv(f"{name}.conv.{step}", h).relu()
            frames = [(self.conv(f"{name}.conv.4", h) + x).relu()]
        else:
            frames = [self.conv(name, x)]
        return [out for frame in frames for out in self.run(frame, place + 1)]


def whole_clip(weights, latents_BCFHW):
    reference = FrameByFrame(weights)
    frames = [out for frame in latents_BCFHW.unbind(2) for out in reference.run(frame)]
    return torch.stack(frames, dim=2)[:, :, 3:].clamp(0, 1) * 2 - 1


@pytest.mark.parametrize("sizes", [[5], [1, 3, 1], [1] * 5])
def test_concatenated_blocks_equal_the_whole_clip(weights, path, sizes):
    x = 2 * torch.randn(2, 16, 5, 2, 3)
    expected = whole_clip(weights, x)
    decoder = TinyStreamDecoder(load_taehv(path))
    found = torch.cat([decoder.decode(block) for block in x.split(sizes, dim=2)], dim=2)
    assert found.shape == expected.shape == (2, 3, 17, 16, 24)
    assert expected.min() == -1
    assert expected.max() == 1
    assert ((expected > -1) & (expected < 1)).float().mean() > 0.2
    assert (found - expected).abs().max() <= 1e-4


def test_cache_is_carried_and_constant(path):
    decoder = TinyStreamDecoder(load_taehv(path))
    x = torch.randn(1, 16, 1, 2, 2)
    first, second = decoder.decode(x), decoder.decode(x)
    assert (first.shape[2], second.shape[2]) == (1, 4)
    carried = sum(tensor.untyped_storage().nbytes() for tensor in decoder._last_frames.values())
    decoder.decode(x.expand(1, 16, 4, 2, 2))
    assert sum(tensor.untyped_storage().nbytes() for tensor in decoder._last_frames.values()) == carried > 0
    decoder.reset()
    again = torch.cat([decoder.decode(x), decoder.decode(x)], dim=2)
    assert torch.equal(again, torch.cat([first, second], dim=2))
    assert not torch.equal(again[:, :, -1], first[:, :, -1])


def test_bfloat16_gives_float32_pixels(weights, path):
    x = torch.randn(1, 16, 2, 2, 2)
    found = TinyStreamDecoder(load_taehv(path, dtype=torch.bfloat16)).decode(x)
    assert found.dtype == torch.float32
    assert (found - whole_clip(weights, x)).abs().mean() < 0.05


def test_safetensors_and_wide_growing_blocks_load_alike(weights, path, tmp_path):
    wide = dict(weights)
    wide["decoder.7.conv.weight"] = torch.cat([torch.zeros(256, 256, 1, 1), weights["decoder.7.conv.weight"]])
    save_file(wide, tmp_path / "taew2_1.safetensors")
    found, expected = load_taehv(tmp_path / "taew2_1.safetensors").state_dict(), load_taehv(path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Payload:
    """Creates a file if it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_wrong_files_are_named(weights, path, tmp_path):
    def refused(content, message, name="bad.pth"):
        bad = tmp_path / name
        if isinstance(content, bytes):
            bad.write_bytes(content)
        else:
            torch.save(content, bad)
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            load_taehv(bad)

    refused({k: v for k, v in weights.items() if k != "decoder.9.conv.2.bias"}, "decoder.9.conv.2.bias is missing")
    refused({**weights, "decoder.1.weight": torch.zeros(256, 48, 3, 3)}, r"shape \[256, 48, 3, 3\], expected \[256, 16")
    refused({**weights, "decoder.23.weight": torch.zeros(1)}, "unexpected decoder.23.weight")
    refused({"generator": {}}, "expected a dictionary of tensors")
    refused(torch.zeros(1), "expected a dictionary of tensors, found Tensor")
    refused(path.read_bytes()[:50_000], "cannot be read as weights")
    refused(b"", "cannot be read as weights")
    refused(b"not a header", "cannot be read as weights", name="bad.safetensors")
    refused(b"half a file", "cannot be read as weights")
    with pytest.raises(FileNotFoundError, match="nowhere.pth: found no such file"):
        load_taehv(tmp_path / "nowhere.pth")


def test_a_payload_is_not_run(tmp_path):
    target = tmp_path / "made-by-payload"
    bad = io.BytesIO()
    torch.save({"decoder.1.weight": Payload(str(target))}, bad)
    (tmp_path / "evil.pth").write_bytes(bad.getvalue())
    with pytest.raises(
        ValueError, match=r"evil.pth: cannot be read as weights \(holds more than tensors, possibly code"
    ):
        load_taehv(tmp_path / "evil.pth")
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(str(target)))).close()  # the payload works
    assert target.exists()


def test_shapes_of_another_clip_are_refused(path):
    decoder = TinyStreamDecoder(load_taehv(path))
    decoder.decode(torch.zeros(1, 16, 1, 2, 2))
    with pytest.raises(ValueError, match="reset"):
        decoder.decode(torch.zeros(1, 16, 1, 4, 2))
    with pytest.raises(ValueError, match=r"\[B, 16, F >= 1, H, W\]"):
        decoder.decode(torch.zeros(1, 16, 2, 2))
