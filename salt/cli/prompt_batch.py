"""The clips of `salt generate --prompts`: their files, named by content, and which of them are still to be made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.atomic import write_text
from ..io.content import content_key, path_digest
from ..io.fields import Count, FieldError, read_fields, read_object
from ..io.video_frames import video_info

NEW = "is new"
NAME = re.compile(r"\d{4,}-.*-[0-9a-f]{8}\.json")  # of a record


@dataclass(frozen=True)
class ClipRecord:
    """The JSON file beside a finished video, written after it. key: of all that the clip is made from."""

    prompt: str
    seed: int
    frames: Count
    key: str

    def write(self, path: Path) -> None:
        write_text(path, json.dumps({"prompt": self.prompt, "seed": self.seed, "frames": self.frames, "key": self.key}))


@dataclass(frozen=True)
class BatchClip:
    """A clip of a batch. record: its JSON file, beside the video."""

    prompt: str
    seed: int
    key: str
    record: Path

    @property
    def video(self) -> Path:
        return self.record.with_suffix(".mp4")

    def fault(self) -> str:
        """Why the clip has to be made: NEW, or what is wrong with an earlier one; empty where it is finished."""
        if not self.record.exists():
            return NEW
        try:
            found = read_fields(ClipRecord, read_object(self.record))
        except (FieldError, OSError):
            return "its record is damaged"
        if found.key != self.key:
            return "was made from other files or settings"
        try:
            frames = video_info(self.video).own_frames
        except OSError:
            return "the video is missing"
        except ValueError:
            return "the video is damaged"
        return "" if frames == found.frames else f"the video has {frames} frames of {found.frames}"


def batch_clips(prompts: list[str], folder: Path, seed: int, model: str, inputs: Mapping[str, Any]) -> list[BatchClip]:
    """The clips of all prompts; prompt i takes seed + i. model: the key of `model_key`. inputs: of `stream`.

    A file's name has words of the prompt and the beginning of a key of everything that the clip is made from.
    """
    settings = dict(inputs)
    for name in ("image", "video"):
        if name in settings:
            settings[name] = path_digest(settings[name])
    clips = []
    for index, prompt in enumerate(prompts):
        key = content_key(model, settings, prompt, seed + index)
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48]
        clips.append(BatchClip(prompt, seed + index, key, folder / f"{index:04d}-{words}-{key[:8]}.json"))
    return clips


def other_clips(clips: list[BatchClip], folder: Path) -> int:
    """How many clips in the folder are of other prompts, settings or models."""
    own = {clip.record.name for clip in clips}
    return sum(NAME.fullmatch(path.name) is not None and path.name not in own for path in folder.glob("*.json"))
