"""The text encoder of salt-tiny: a fixed vocabulary whose embeddings are computed from a hash, not stored.

A prompt is a sequence of known words; each has one vector of `dim` values +-SCALE whose signs are the bits of
SHA-256(word, counter), the same on every platform. The empty prompt, the unconditional one, is all zeros.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError

VOCABULARY = (
    *("a", "moving", "slow", "fast"),
    *("red", "yellow", "green", "cyan", "blue", "purple"),
    *("circle", "square", "triangle"),
    *("right", "down", "left", "up"),
)
LISTED, LISTED_CHARACTERS = 6, 150  # lines of one word, and characters of all, in an error
SCALE = 0.125  # near the spread of UMT5 embeddings, and exact in every float type


class UnknownWordError(ValueError):
    """A prompt has a word outside salt-tiny's vocabulary."""

    __module__ = "salt.models.word_embedder"

    def __init__(self, word: str, prompt: str, vocabulary: Sequence[str]):
        super().__init__(f"unknown word {word!r} in prompt {prompt!r}; salt-tiny knows only: {', '.join(vocabulary)}")
        self.word = word


def word_vector(word: str, dim: int) -> Tensor:
    """The embedding of one word, [dim] float32 of +-SCALE: bits of the concatenated digests SHA-256("word:counter")."""
    digests = (hashlib.sha256(f"{word}:{counter}".encode()).digest() for counter in range((dim + 255) // 256))
    bits = [(byte >> shift) & 1 for byte in b"".join(digests) for shift in range(8)]
    return (torch.tensor(bits[:dim], dtype=torch.float32) * 2 - 1) * SCALE


class WordEmbedder:
    """Encodes prompts by table lookup; a `salt.models.text_encoder.TextEncoder`."""

    def __init__(self, dim: int = 4096, max_length: int = 16, vocabulary: Sequence[str] = VOCABULARY):
        self.dim = dim
        self.max_length = max_length
        self.vocabulary = tuple(vocabulary)
        self._table = {word: word_vector(word, dim) for word in self.vocabulary}

    def encode(self, prompts: list[str]) -> Tensor:
        """Embed prompts as [B, max_length, dim] float32 on the CPU, zero padded; the empty prompt is all zeros.

        Case, commas and a final full stop do not matter. Raises UnknownWordError (a ValueError) for a word outside the
        vocabulary, ValueError for a prompt of more than max_length words.
        """
        out_BLD = torch.zeros(len(prompts), self.max_length, self.dim)
        for row, prompt in zip(out_BLD, prompts, strict=True):
            for position, word in enumerate(self.words(prompt)):
                row[position] = self._table[word]
        return out_BLD

    def words(self, prompt: str) -> list[str]:
        """The words of a prompt, all known. Raises the errors of `encode`."""
        words = _split(prompt)
        if len(words) > self.max_length:
            raise ValueError(f"prompt of {len(words)} words, salt-tiny takes at most {self.max_length}: {prompt!r}")
        for word in words:
            if word not in self._table:
                raise UnknownWordError(word, prompt, self.vocabulary)
        return words

    def check_prompt(self, field: str, prompt: str) -> None:
        """Raise InputError about `field` for a prompt that `words` refuses, and for one without words."""
        try:
            words = self.words(prompt)
        except ValueError as error:
            raise InputError(field, f"cannot be encoded: {error}") from None
        if not words:
            raise InputError(field, f"found an empty one, expected words among: {', '.join(self.vocabulary)}")

    def check_lines(self, prompts: Mapping[int, str], where: str) -> None:
        """Raise ValueError naming the lines of prompts that `words` refuses, and their words. where: for the message.

        prompts: by line number.
        """
        wrong: dict[str, list[int]] = {}
        for number, prompt in prompts.items():
            words = _split(prompt)
            unknown = [f"{word!r:.40}" for word in dict.fromkeys(words) if word not in self._table]
            if len(words) > self.max_length:
                unknown.append(f"more than {self.max_length} words")
            for problem in unknown or ([] if words else ["no word"]):
                wrong.setdefault(problem, []).append(number)
        if wrong:
            lines = sorted({number for numbers in wrong.values() for number in numbers})
            found = [f"{problem} ({_lines(numbers)})" for problem, numbers in wrong.items()]
            raise ValueError(
                f"{where}: found {len(lines)} of {len(prompts)} prompts that cannot be used: {_first(found)}; "
                f"salt-tiny knows only: {', '.join(self.vocabulary)}"
            )


def _split(prompt: str) -> list[str]:
    return prompt.lower().replace(",", " ").replace(".", " ").split()


def _lines(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:LISTED]))}{more}"


def _first(texts: Sequence[str]) -> str:
    """As many of the texts as an error has room for, and how many are left out."""
    shown, length = 0, 0
    while shown < len(texts) and (length := length + len(texts[shown])) <= LISTED_CHARACTERS:
        shown += 1
    more = [f"and {len(texts) - shown} more"] if shown < len(texts) else []
    return ", ".join([*texts[:shown], *more])
