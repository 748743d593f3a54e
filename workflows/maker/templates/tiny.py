"""Workflows of the embedded model: clips, long and live ones, prompts that change, little memory."""

from __future__ import annotations

from typing import Any

from ..building_blocks import (
    SEED_NOTE,
    SWAP_NOTE,
    TINY_PROMPT,
    TINY_PROMPT_NOTE,
    TINY_SEED,
    TINY_SIZE,
    Loaders,
    prompt,
    save_video,
    text_to_video,
    tiny_student,
)
from ..graph import Graph

SCHEDULE_NOTE = """
A line of **Salt Prompt Schedule** is a second, how the prompt takes hold, and the prompt:
- **keep** changes the words only: the change comes slowly,
- **recache** reads the last seconds again under the new words, so that they take hold at once (LongLive),
- **cut** forgets the scene.
"""


def tiny_text_to_video(g: Graph) -> None:
    g.note(f"""
# Text to video, at once

Press **Run**: nothing is downloaded, and a CPU will do. The clip appears in **Salt Rollout** while it is made, and in
**Save Video** when it is done.

{TINY_PROMPT_NOTE}

{SEED_NOTE}

{SWAP_NOTE}
""")
    text_to_video(g, tiny_student(g), TINY_PROMPT, seconds=5.0, **TINY_SIZE, nfe="4", seed=TINY_SEED)


def live(g: Graph) -> None:
    g.note(
        f"""
# Steer a clip while it plays

Press **Run**: **Salt Live** shows the clip on the node. Type another direction, blend, pause, rewind by a click, then
**Stop and keep**: the recording is in **output/video**. It stops by itself after a minute; with **seconds** 0 it runs
until you stop it.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""",
        columns=1,
    )
    loaders = tiny_student(g, width=380)
    g.group("Live", 1)
    g.add(
        "SaltLive", model=loaders.model, clip=loaders.clip, vae=loaders.vae, prompt=TINY_PROMPT, seconds=60.0,
        **TINY_SIZE, nfe="2", seed=TINY_SEED, size=(0, 980),
    )  # fmt: skip


def scheduled_prompts(g: Graph, loaders: Loaders, timeline: str, **widgets: Any) -> None:
    """Add a prompt schedule, a rollout and a video."""
    g.group("Prompts", 1)
    prompts = g.add("SaltPromptSchedule", clip=loaders.clip, timeline=timeline)["prompts"]
    g.group("Rollout", 2)
    rollout = g.add("SaltRollout", model=loaders.model, prompts=prompts, vae=loaders.vae, **widgets)
    save_video(g, loaders, rollout["LATENT"], g.name, 3)


def tiny_interactive_prompts(g: Graph) -> None:
    g.note(f"""
# Prompts that change while the clip is made

{SCHEDULE_NOTE}

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    timeline = "0: a slow green triangle moving down\n2.25 recache: a slow green triangle moving up"
    scheduled_prompts(g, tiny_student(g), timeline, seconds=5.0, **TINY_SIZE, nfe="4", seed=2)


def rollout_to_video(g: Graph) -> None:
    g.note(f"""
# A clip of any length, into a file

**Salt Rollout to Video** writes the clip to **output/video** while it is made: the memory that it needs does not grow
with the length, the file plays from its first block on, and **Stop and keep** or Cancel leaves what was made.

{TINY_PROMPT_NOTE}

{SWAP_NOTE} For long clips connect **Salt Memory Policy** with a window.
""")
    loaders = tiny_student(g)
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("Rollout", 2)
    g.add(
        "SaltRolloutToVideo", model=loaders.model, positive=positive, vae=loaders.vae, seconds=20.0, **TINY_SIZE,
        nfe="2", seed=TINY_SEED,
    )  # fmt: skip


def low_vram(g: Graph) -> None:
    g.note(f"""
# A clip on a small card

**Salt Memory Policy** keeps the last 9 latent frames and the first 3 of them, in 8 bits, in main memory: what a clip
needs of the card no longer grows with its length. **Salt Plan** says what that makes, phase by phase, before anything
runs, and which change saves how much; set its **vram** to your card's GB, 0 for this one.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("What is remembered, where", 1)
    policy = g.add(
        "SaltMemoryPolicy", kind="sink + window", window=9, sink=3, precision="int8", residence="cpu",
        model=loaders.model, **TINY_SIZE, room=60,
    )["policy"]  # fmt: skip
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, policy=policy, seconds=5.0, **TINY_SIZE,
        nfe="4", seed=TINY_SEED,
    )  # fmt: skip
    g.group("Plan", 3)
    g.add("SaltPlan", model=loaders.model, policy=policy, **TINY_SIZE, seconds=5.0, size=(300, 0), room=170)
    save_video(g, loaders, rollout["LATENT"], g.name, 3)
