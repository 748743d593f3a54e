"""UMT5 as Wan uses it, its 8-bit option, and the cache of embeddings on disk."""

import importlib.util
import re
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from salt.models.text_encoder import TOKENS, CachedTextEncoder, UMT5TextEncoder, clean, umt5_key, umt5_width
from salt.models.tokenizer import TokenizerError, load_tokenizer
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


OTHER_MODEL = b'{"version": "1.0", "added_tokens": [], "model": {"type": "?"}}'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": None}, "tokenizer: found neither tokenizer.json nor spiece.model"),
        ({"tokenizer.json": b""}, "tokenizer/tokenizer.json: found no valid JSON"),
        ({"tokenizer.json": b"[]"}, "tokenizer/tokenizer.json: found [], expected a JSON object"),
        (
            {"tokenizer.json": b'{"version": "1.0", "added_tokens": [], "model": {"type": "?"}}'},
            "tokenizer/tokenizer.json: transformers",
        ),
        ({"tokenizer_config.json": b'{"pad_token": 5}'}, "tokenizer: transformers cannot read this tokenizer: "),
        ({"special_tokens_map.json": b"[1"}, "tokenizer/special_tokens_map.json: found no valid JSON"),
        ({"tokenizer.json": None, "spiece.model": b"<html>"}, "tokenizer/spiece.model: found no SentencePiece model"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(folder, files, message):
    for name, content in files.items():
        path = folder / "tokenizer" / name
        path.unlink() if content is None else path.write_bytes(content)
    for load in (UMT5TextEncoder.from_pretrained, lambda path: load_tokenizer(path / "tokenizer")):
        with pytest.raises(TokenizerError, match=re.escape(str(folder / message))):
            load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "text_encoder: found no config.json"),
        (
            "config.json",
            b'{"model_type": "umt5", "d_model": 32}',
            "text_encoder: its weights do not fit its config.json",
        ),
        ("model.safetensors", b"cut", "text_encoder/model.safetensors: is damaged or cut short"),
    ],
)
def test_a_text_encoder_that_does_not_fit_is_named(folder, name, content, message):
    path = folder / "text_encoder" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message):
        UMT5TextEncoder.from_pretrained(folder)


def test_a_tokenizer_of_more_tokens_than_the_text_encoder_is_refused(folder):
    words = {f"w{i}": i for i in range(50)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="tokenizer: found 5[0-9] tokens, expected at most the text encoder's 8"):
        UMT5TextEncoder.from_pretrained(folder)


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


@pytest.mark.parametrize("change", ["width", "length", "text encoder"])
def test_cache_files_that_do_not_fit_are_made_anew_and_said(tmp_path, caplog, change):
    inner = Counting()
    expected = Counting().encode(["a b"])

    def cached(content="one"):
        return CachedTextEncoder(lambda: inner, tmp_path, "counting", content, expected.shape[2])

    cached().encode(["a b"])
    assert torch.equal(cached().encode(["a b"]), expected) and len(inner.encoded) == 1 and not caplog.text
    path = cached().path("a b")
    if change == "width":
        save_file({"embedding": torch.zeros(2, 1), "length": torch.tensor(4)}, path, {"key": "one"})
    elif change == "length":
        save_file({"embedding": torch.zeros(2, expected.shape[2]), "length": torch.tensor(1)}, path, {"key": "one"})
    content = "two" if change == "text encoder" else "one"
    assert torch.equal(cached(content).encode(["a b"]), expected) and len(inner.encoded) == 2
    assert f"{path}: " in caplog.text and "made anew" in caplog.text


def test_the_key_of_an_encoder_is_of_its_files(folder):
    before = umt5_key(folder)
    path = folder / "text_encoder" / "model.safetensors"
    save_file({n: x + 1 for n, x in load_file(path).items()}, path, {"format": "pt"})
    assert before and umt5_key(folder) not in (before, "") and umt5_key(folder / "text_encoder") == ""
    assert umt5_width(folder) == 32 and umt5_width(folder / "text_encoder") is None


def untied(monkeypatch, value: float) -> None:
    """transformers 5.0 to 5.2: the encoder's token embeddings are not the ones of the file."""
    real = transformers.UMT5EncoderModel.from_pretrained

    def load(*args, **keywords):
        model = real(*args, **keywords)
        rows, width = model.shared.weight.shape
        model.encoder.embed_tokens = torch.nn.Embedding(rows, width, dtype=model.shared.weight.dtype)
        torch.nn.init.constant_(model.encoder.embed_tokens.weight, value)
        return model

    monkeypatch.setattr(transformers.UMT5EncoderModel, "from_pretrained", load)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_token_embeddings_are_tied_after_loading(folder, monkeypatch, value):
    expected = UMT5TextEncoder.from_pretrained(folder).encode(["a red circle"])
    untied(monkeypatch, value)
    assert torch.equal(UMT5TextEncoder.from_pretrained(folder).encode(["a red circle"]), expected)


def test_files_that_lack_weights_are_refused_and_either_name_of_the_embeddings_is_read(folder):
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {n: x.clone() for n, x in load_file(path).items()}  # not mapped to the file that is written again
    expected = UMT5TextEncoder.from_pretrained(folder).encode(["a red circle"])
    renamed = {"encoder.embed_tokens.weight" if n == "shared.weight" else n: x for n, x in tensors.items()}
    save_file(renamed, path, {"format": "pt"})
    assert torch.equal(UMT5TextEncoder.from_pretrained(folder).encode(["a red circle"]), expected)
    for name, found in (
        ("shared.weight", r"encoder.embed_tokens.weight \(2"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", r"encoder.block.0.layer.0.SelfAttention.q.weight \(1"),
    ):
        save_file({n: x for n, x in tensors.items() if n != name}, path, {"format": "pt"})
        with pytest.raises(ValueError, match=f"text_encoder: found no {found} weights are missing"):
            UMT5TextEncoder.from_pretrained(folder)


def test_embeddings_that_are_not_finite_are_an_error(folder):
    encoder = UMT5TextEncoder.from_pretrained(folder)
    torch.nn.init.constant_(encoder.model.get_parameter("encoder.final_layer_norm.weight"), float("nan"))
    with pytest.raises(ValueError, match="text encoder: found embeddings that are not finite for 'a red circle'"):
        encoder.encode(["a red circle"])
