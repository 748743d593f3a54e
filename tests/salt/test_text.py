"""UMT5 as Wan uses it, its 8-bit option, and the cache of embeddings on disk."""

import importlib.util
import sys

import pytest
import torch

from salt.models.text_encoder import TOKENS, CachedTextEncoder, UMT5TextEncoder, clean
from tests.helpers import tiny_system


@pytest.fixture
def folder(tmp_path):
    return tiny_system.umt5(tmp_path)


def test_embeddings_are_trimmed_to_their_length_and_zero_padded_to_512(folder):
    encoder = UMT5TextEncoder.from_pretrained(folder)
    x = encoder.encode(["a red circle", "a"])
    assert x.shape == (2, TOKENS, encoder.dim) == (2, 512, 32) and x.dtype == torch.bfloat16
    assert x[0, :4].abs().amax(1).min() > 0 and x[0, 4:].abs().max() == 0  # three words and </s>
    assert x[1, :2].abs().amax(1).min() > 0 and x[1, 2:].abs().max() == 0


def test_padding_does_not_change_an_embedding(folder):
    encoder = UMT5TextEncoder.from_pretrained(folder)
    encoder.model.float()
    ids = encoder.tokenizer("a red circle", return_tensors="pt").input_ids
    with torch.no_grad():
        alone = encoder.model(ids).last_hidden_state
    torch.testing.assert_close(encoder.encode(["a red circle"])[:, :4], alone, rtol=1e-4, atol=1e-5)


def test_a_long_prompt_is_cut_at_512_tokens(folder):
    x = UMT5TextEncoder.from_pretrained(folder).encode(["red " * 600])
    assert x.shape[1] == 512 and x[0, 511].abs().max() > 0


def test_prompts_are_cleaned_as_wan_cleans_them(folder):
    assert clean("  a \n red&amp;amp;blue\tcircle ") == "a red&blue circle"
    assert clean("donâ€™t") == "don't"
    encoder = UMT5TextEncoder.from_pretrained(folder)
    assert torch.equal(encoder.encode([" a  red\ncircle "]), encoder.encode(["a red circle"]))


def test_missing_parts_are_named(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="text_encoder/"):
        UMT5TextEncoder.from_pretrained(tmp_path_factory.mktemp("empty"))


def test_int8_without_torchao_is_an_error(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match="int8 needs torchao"):
        UMT5TextEncoder.from_pretrained(folder, "int8")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_int8_stays_near_bf16(folder):
    plain = UMT5TextEncoder.from_pretrained(folder).encode(["a red circle moving right"]).float()
    small = UMT5TextEncoder.from_pretrained(folder, "int8").encode(["a red circle moving right"]).float()
    assert 0 < (small - plain).norm() / plain.norm() < 0.05


class Counting:
    dim, max_length = 4, 6

    def __init__(self):
        self.encoded = []

    def encode(self, prompts):
        self.encoded += prompts
        out = torch.zeros(len(prompts), self.max_length, self.dim)
        for row, prompt in zip(out, prompts, strict=True):
            row[: len(prompt.split())] = len(prompt)
        return out


def test_cache_encodes_each_prompt_once(tmp_path):
    inner = Counting()
    cached = CachedTextEncoder(lambda: inner, tmp_path / "cache", "counting")
    first = cached.encode(["a b", "a b c", "a b"])
    assert inner.encoded == ["a b", "a b c"] and torch.equal(first, Counting().encode(["a b", "a b c", "a b"]))
    again = CachedTextEncoder(lambda: inner, tmp_path / "cache", "counting").encode(["a b c", ""])
    assert inner.encoded == ["a b", "a b c", ""]
    assert torch.equal(again[0], first[1]) and again[1].abs().max() == 0
    assert not list((tmp_path / "cache").glob("*.part"))


def test_cache_distinguishes_encoders_and_loads_one_only_when_needed(tmp_path):
    CachedTextEncoder(Counting, tmp_path, "one").encode(["a"])
    made = []

    def make():
        made.append(Counting())
        return made[-1]

    CachedTextEncoder(make, tmp_path, "one").encode(["a"])
    assert not made
    CachedTextEncoder(make, tmp_path, "two").encode(["a"])
    assert len(made) == 1 and made[0].encoded == ["a"]


def test_a_damaged_cache_file_is_replaced(tmp_path):
    inner = Counting()
    cached = CachedTextEncoder(lambda: inner, tmp_path, "counting")
    expected = cached.encode(["a b"])
    cached.path("a b").write_bytes(b"cut short")
    assert torch.equal(cached.encode(["a b"]), expected) and len(inner.encoded) == 2
    assert torch.equal(cached.encode(["a b"]), expected) and len(inner.encoded) == 2
