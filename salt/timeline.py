"""Prompts at seconds, written as lines of text: what a person types, and what a timeline widget reads and writes.

    0: a red circle moving right
    3.5 recache: a blue circle moving right
    7 cut: a green triangle at night

A line is SECONDS [keep|recache|cut]: PROMPT. The word says what happens to the memory at the change (`PromptChange`);
without one the memory is kept. A first line without a time begins at 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .conditioning import SWITCHES, Switch

LINE = re.compile(r"^\s*(?P<seconds>\d+(?:\.\d*)?|\.\d+)\s*s?\s*(?P<switch>[a-z]+)?\s*:\s*(?P<text>.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class TimedPrompt:
    """From `seconds` on, `text` holds; `switch` is what the memory does there."""

    seconds: float
    text: str
    switch: Switch = "keep"


def parse_timeline(text: str) -> tuple[TimedPrompt, ...]:
    """Lines to prompts in order of time. Raises ValueError naming the line, for one that cannot be read, times that do
    not rise from 0, and no prompt at all."""
    prompts: list[TimedPrompt] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"timeline, line {number}"
        found = LINE.match(line)
        if found is None and not prompts:
            prompts.append(TimedPrompt(0.0, line.strip()))
            continue
        if found is None:
            raise ValueError(f"{where}: found {line.strip()!r}, expected SECONDS [keep|recache|cut]: PROMPT")
        seconds, switch = float(found["seconds"]), (found["switch"] or "keep").lower()
        if switch not in SWITCHES:
            raise ValueError(f"{where}: found {switch!r}, expected {', '.join(SWITCHES)}")
        if not found["text"].strip():
            raise ValueError(f"{where}: found no prompt after {found['seconds']} s")
        if prompts and seconds <= prompts[-1].seconds:
            raise ValueError(f"{where}: found {seconds:g} s after {prompts[-1].seconds:g} s, expected later")
        if not prompts and seconds:
            raise ValueError(f"{where}: found {seconds:g} s, expected the first prompt at 0")
        prompts.append(TimedPrompt(seconds, found["text"].strip(), switch))
    if not prompts:
        raise ValueError("timeline: found no prompt, expected at least one line")
    return tuple(prompts)
