"""Shots as a live control (LongLive 2.0): when one is begun, refused, and what its first block reads."""

import pytest

from salt.errors import InputError
from salt.live.controls import Policy, Prompt
from salt.live.prompt_blend import PromptMix
from salt.live.settings import LiveSettings
from salt.memory import MemoryPolicy


def test_a_shot_waits_for_its_block_and_yields_to_a_cut():
    first = LiveSettings("a", policy="shots:8,window:32,offset:8").steering(MemoryPolicy())
    shot = first.after(Prompt.of("b", "shot"))
    assert shot.switch == "shot" and shot.after(Prompt.of("c")).switch == "shot"
    assert shot.after(Prompt.of("c", "cut")).switch == "cut"
    assert shot.after(Policy("window:12")).switch == "keep"


def test_a_shot_is_refused_where_the_memory_has_none():
    first = LiveSettings("a").steering(MemoryPolicy("sink", 12, 3))
    with pytest.raises(
        InputError, match="switch: found shot with the memory sink:3,window:12, expected one as shots:8"
    ):
        first.after(Prompt.of("b", "shot"))


def test_every_text_of_a_mixture_gets_the_prefix():
    mixture = PromptMix(((PromptMix((("a", 1.0),)), 0.25), ("b", 0.75)), "slerp")
    assert mixture.prefixed("> ") == PromptMix(((PromptMix((("> a", 1.0),)), 0.25), ("> b", 0.75)), "slerp")
