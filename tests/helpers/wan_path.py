"""The commands of docs/training.md for Wan, read from the page, with stand-ins for what they need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from salt.io.video import VideoWriter
from tests.helpers import documented_path, wan_hub

MAIN, INITIAL, IMAGES = "With Wan 2.1 on GPUs", "Initial students of your own", "Image to video"
FRAMES = 6  # latent frames of a clip
SMALL = f"rollout.frames={FRAMES} rollout.height=4 rollout.width=4 optimisation.batch=2 optimisation.updates=2"


@dataclass(frozen=True)
class Override:
    """Words of the page's lines (a regular expression), what runs here in their place, and why."""

    words: str
    instead: str
    why: str


OVERRIDES = (
    Override(
        "^accelerate launch --num_processes 8",
        "torchrun --standalone --nproc_per_node 2",
        "it has no GPUs; on a CPU the page names torchrun",
    ),
    Override(r"(distill \w+)(?!.*--dry-run)", rf"\1 {SMALL}", "clips of 21 frames of 60x104, 64 an update"),
    Override(r"(precompute \w+)(?!.*embeddings)", rf"\1 {SMALL}", "the clips of these runs"),
    Override(r"(distill self_forcing_salt) (?=rollout)", r"\1 loss.align_start=0 ", "it begins after 200 updates"),
    Override(r"(precompute \w+_ode)", r"\1 start.clips=2", "a trajectory takes 96 forwards of the teacher"),
    Override("FOLDER", "folder", "the user's own"),
)


def lines(section: str) -> list[str]:
    """The section's commands as they run here."""
    return [_here(line) for line in documented_path.lines(section) if line]


def _here(line: str) -> str:
    for override in OVERRIDES:
        line = re.sub(override.words, override.instead, line)
    return line


def unused() -> list[str]:
    """Overrides whose words are in no line of the page."""
    written = [line for section in (MAIN, INITIAL, IMAGES) for line in documented_path.lines(section)]
    return [o.words for o in OVERRIDES if not any(re.search(o.words, _before(o, line)) for line in written)]


def _before(last: Override, line: str) -> str:
    """The line when an override's turn comes."""
    for override in OVERRIDES[: OVERRIDES.index(last)]:
        line = re.sub(override.words, override.instead, line)
    return line


def write_own_files(pack: Path) -> None:
    """What the user has: two captioned videos and two numbered pictures in `folder`, prompts and a picture."""
    folder, prompts = pack / "folder", pack / "prompts"
    folder.mkdir()
    prompts.mkdir(exist_ok=True)
    (prompts / "i2v.txt").write_text("\n".join(wan_hub.PROMPTS) + "\n")
    for i, prompt in enumerate(wan_hub.PROMPTS):
        picture = np.random.default_rng(i).integers(0, 255, (4 * FRAMES, 48, 64, 3), dtype=np.uint8)
        with VideoWriter(folder / f"clip{i}.mp4") as video:
            video.write(picture)
        (folder / f"clip{i}.txt").write_text(prompt)
        Image.fromarray(picture[0]).save(folder / f"{i}.png")
    Image.fromarray(picture[0]).save(pack / "start.png")
