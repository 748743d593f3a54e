"""Videos for VBench and VBench-Long, in the folder layout that their own tools score.

What those tools expect, read in github Vchitect/VBench (prompts/README.md, vbench/__init__.py, static_filter.py,
vbench2_beta_long/):
  Names are PROMPT-INDEX.mp4 with the prompt as the list has it, case and full stop included; index 0 to 4, and 0 to 24
  for temporal_flickering, whose videos pass a static filter first. VBench-Long takes 5 of everything: it filters the
  clips that it cuts from each video.
  The prompt is looked up by its file name: VBench's own prompts all fit one (210 bytes at most) and none has a slash.
  An extended prompt is sampled under the name of the short one. (Only VBench-2.0, another benchmark,
  cuts names at 180 characters.) VBench-Long finds the clips of a video by what stands before the first underscore.
  The extension of all videos is taken from the folder's first entry, so it may hold nothing but finished videos.
  Seeds are random and recorded: ours are a hash of (--seed, prompt, index).
  No clip length is prescribed; VBench-Long's clips are 2 and 10 seconds of a longer video.

A folder: videos/PROMPT-INDEX.mp4, samples.json (settings and seeds), samples.md (videos per dimension).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salt.io.atomic import replace_file, write_text
from salt.io.prompt_files import read_prompts
from salt.models.fingerprint import fingerprint
from salt.pipeline import SaltPipeline
from salt.pipeline.write_clip import write_clip
from train.distributed.launch import process_state
from train.rollout.random_draws import seed_for

SAMPLES_PER_PROMPT = 5
# VBench filters the videos of this dimension, so it wants more of them.
FILTERED_DIMENSION, FILTERED_SAMPLES = "temporal_flickering", 25
DIMENSIONS = (
    *("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree"),
    *("aesthetic_quality", "imaging_quality", "object_class", "multiple_objects", "human_action", "color"),
    *("spatial_relationship", "scene", "temporal_style", "appearance_style", "overall_consistency"),
)
MAX_NAME_BYTES = 255  # of a file name, on every file system in use


@dataclass(frozen=True)
class Prompt:
    """A prompt of the list. text: names the files; extended: the text that the student gets; dimensions: VBench's."""

    text: str
    extended: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One video to sample."""

    file: str
    prompt: Prompt
    index: int
    seed: int

    @property
    def row(self) -> dict[str, Any]:
        """The sample's entry of samples.json."""
        extended = {} if self.prompt.extended == self.prompt.text else {"extended": self.prompt.extended}
        known = {"file": self.file, "prompt": self.prompt.text, "index": self.index, "seed": self.seed}
        return {**known, **extended, "dimensions": list(self.prompt.dimensions)}


def read_list(path: Path, extended: Path | None = None) -> list[Prompt]:
    """A prompt list: text, one per line, or VBench_full_info.json. Repeated prompts are merged.

    A text file named after a dimension belongs to it, as in VBench's prompts_per_dimension/; the dimensions of other
    files (all_dimension.txt) are unknown. extended: longer prompts, line by line (VBench's augmented_prompts/). Raises
    FileNotFoundError, or ValueError for a file that is neither, or lists of two lengths.
    """
    if path.suffix == ".json":
        entries = _read_info(path)
    else:
        dimensions = (path.stem,) if path.stem in DIMENSIONS else ()
        entries = [(line, dimensions) for line in read_prompts(path)]
    lines = read_prompts(extended) if extended else [text for text, _ in entries]
    if len(lines) != len(entries):
        raise ValueError(f"{extended}: found {len(lines)} lines, expected one for each of {path}'s {len(entries)}")
    prompts: dict[str, Prompt] = {}
    for (text, dimensions), line in zip(entries, lines, strict=True):
        first = prompts.get(text, Prompt(text, line, ()))
        prompts[text] = Prompt(text, first.extended, tuple(dict.fromkeys((*first.dimensions, *dimensions))))
    return list(prompts.values())


def _read_info(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected VBench_full_info.json or prompts, one a line")
    try:
        return [(entry["prompt_en"], tuple(entry["dimension"])) for entry in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a JSON list of prompt_en and dimension ({error!r})") from error


def plan(prompts: Sequence[Prompt], seed: int = 0, samples: int | None = None, long: bool = False) -> list[Sample]:
    """Every video of the benchmark. samples: per prompt, instead of VBench's own numbers.

    Raises ValueError for a prompt that VBench cannot look up by its file name.
    """
    planned = []
    for prompt in prompts:
        count = samples or (
            FILTERED_SAMPLES if FILTERED_DIMENSION in prompt.dimensions and not long else SAMPLES_PER_PROMPT
        )
        for index in range(count):
            file = f"{prompt.text}-{index}.mp4"
            _check_name(file, prompt.text, long)
            planned.append(Sample(file, prompt, index, seed_for("vbench", seed, prompt.text, index)))
    return planned


def _check_name(file: str, prompt: str, long: bool) -> None:
    shown = prompt if len(prompt) <= 60 else prompt[:59] + "…"
    for mark in ("/", "\\", "\0") + (("_",) if long else ()):
        if mark in prompt:
            raise ValueError(f"prompt {shown!r} contains {mark!r}, which VBench's look-up by file name does not allow")
    if len(file.encode()) > MAX_NAME_BYTES:
        raise ValueError(
            f"prompt {shown!r}: found a file name of {len(file.encode())} bytes, expected {MAX_NAME_BYTES} at most "
            "(use VBench's own prompts, and --extended for longer ones)"
        )


def sample_all(
    load: Callable[[], SaltPipeline],
    student: str,
    samples: Sequence[Sample],
    folder: Path,
    frames: int,
    *,
    num_inference_steps: int | None = None,
    memory_policy: str | None = None,
) -> str:
    """Sample every missing video, `frames` latent frames long; returns the table of samples.md.

    Each process of an accelerate launch makes its share. A video is moved into the folder when it is complete, so an
    interrupted run can be resumed. student: its name in samples.json. num_inference_steps, memory_policy: None for the
    student's own. Raises ValueError where the folder holds videos of another student or of other settings, and what
    the pipeline raises.
    """
    state = process_state()
    pipe = load()
    request: dict[str, Any] = {"num_frames": frames * pipe.temporal_scale - (pipe.temporal_scale - 1)}
    if num_inference_steps is not None:
        request["num_inference_steps"] = num_inference_steps
    if memory_policy is not None:
        request["memory_policy"] = memory_policy
    videos, staging = folder / "videos", folder / "unfinished"
    record = _record(folder, _facts(pipe, student, request), samples)
    state.wait_for_everyone()  # all have read the previous record
    if state.is_main_process:
        for place in (videos, staging):
            place.mkdir(parents=True, exist_ok=True)
        write_text(folder / "samples.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    missing = [sample for sample in samples if not (videos / sample.file).exists()]
    state.wait_for_everyone()  # all have listed the videos before the first one is finished
    for sample in missing[state.process_index :: state.num_processes]:
        staged = staging / (hashlib.sha256(sample.file.encode()).hexdigest()[:16] + ".mp4")
        write_clip(pipe, sample.prompt.extended, staged, sample.seed, request)
        replace_file(staged, videos / sample.file)
    state.wait_for_everyone()
    table = coverage(samples, videos)
    if state.is_main_process:
        (folder / "samples.md").write_text(table + "\n", encoding="utf-8")
        for leftover in staging.iterdir():  # of interrupted runs
            leftover.unlink()
        staging.rmdir()
    return table


def _facts(pipe: SaltPipeline, student: str, request: dict[str, Any]) -> dict[str, Any]:
    """The settings that all videos of a folder share."""
    steps = request.get("num_inference_steps")
    return {
        "student": student,
        "fingerprint": fingerprint(pipe.transformer),
        "nfe": steps or len(pipe.spec.steps),
        "num_frames": request["num_frames"],
        "size": list(pipe.default_size),
        "memory": str(request.get("memory_policy") or pipe.spec.policy),
    }


def _record(folder: Path, facts: dict[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """The new content of samples.json: the old one and these samples."""
    path = folder / "samples.json"
    rows: dict[str, dict[str, Any]] = {}
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            rows = {row["file"]: row for row in before["samples"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: is damaged ({error!r})") from error
        for name, value in facts.items():
            if name != "student" and before.get(name) != value:
                raise ValueError(
                    f"{folder} has videos sampled with {name} {before.get(name)}, expected {value} (or another --out)"
                )
    for sample in samples:
        row = sample.row
        known = rows.get(sample.file, row)
        for name in ("seed", "extended"):
            if known.get(name) != row.get(name):
                raise ValueError(
                    f"{folder} has {sample.file!r} sampled with {name} {known.get(name)!r}, expected "
                    f"{row.get(name)!r} (or another --out)"
                )
        rows[sample.file] = row
    # VBench-Long puts folders of its own beside the videos.
    unknown = [p.name for p in (folder / "videos").glob("*") if p.is_file() and p.name not in rows]
    if unknown:
        raise ValueError(f"{folder / 'videos'}: found {unknown[0]!r}, which samples.json does not know")
    return {**facts, "samples": list(rows.values())}


def coverage(samples: Sequence[Sample], videos: Path) -> str:
    """A markdown table: prompts and finished videos of each dimension."""
    lines = ["| dimension | prompts | videos |", "|---|---|---|"]
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        for dimension in sample.prompt.dimensions or ("all",):
            groups.setdefault(dimension, []).append(sample)
    for dimension, group in groups.items():
        done = sum((videos / sample.file).is_file() for sample in group)
        lines.append(f"| {dimension} | {len({s.prompt.text for s in group})} | {done} of {len(group)} |")
    return "\n".join(lines)
