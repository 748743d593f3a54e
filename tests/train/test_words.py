"""Word embeddings: fixed vectors, zero padding, errors for unknown words."""

import hashlib

import pytest
import torch

from salt.models.word_embedder import SCALE, VOCABULARY, UnknownWordError, WordEmbedder
from train.shapes.world import SCENES, WORDS


def test_shape_padding_and_the_empty_prompt():
    text = WordEmbedder().encode(["a red circle", ""])
    assert text.shape == (2, 16, 4096) and text.dtype == torch.float32
    assert text[0, :3].abs().eq(SCALE).all() and not text[0, 3:].any() and not text[1].any()


def test_the_vectors_are_those_of_the_first_release():
    text = WordEmbedder().encode(["red circle moving left"])
    signs = (text[0, :4] > 0).to(torch.uint8).numpy().tobytes()
    assert hashlib.sha256(signs).hexdigest()[:16] == "a49a50d3e507a7b5"


def test_words_are_nearly_orthogonal():
    table = WordEmbedder().encode([" ".join(VOCABULARY[:16])])[0]
    gram = table @ table.T / (4096 * SCALE**2)
    assert (gram - torch.eye(16)).abs().max() < 0.1


def test_case_and_punctuation_do_not_matter():
    plain, punctuated = WordEmbedder().encode(["a fast red circle moving left", "A fast, red circle moving left."])
    assert torch.equal(plain, punctuated)


def test_every_caption_of_the_world_is_known():
    assert set(VOCABULARY) == set(WORDS)
    assert WordEmbedder(dim=8).encode([scene.caption for scene in SCENES]).shape == (144, 16, 8)


def test_an_unknown_word_is_named_and_the_vocabulary_listed():
    with pytest.raises(UnknownWordError, match="'pink'.*purple") as error:
        WordEmbedder(dim=8).encode(["a pink circle"])
    assert isinstance(error.value, ValueError) and error.value.word == "pink"


def test_a_prompt_too_long_is_an_error():
    with pytest.raises(ValueError, match="17 words.*at most 16"):
        WordEmbedder(dim=8).encode(["a " * 17])
