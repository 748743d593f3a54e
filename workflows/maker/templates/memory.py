"""Workflows of clips that go on: saved memories, extensions, branches."""

from __future__ import annotations

from ..building_blocks import (
    CLIP_NAME,
    SWAP_NOTE,
    TINY_PROMPT,
    TINY_PROMPT_NOTE,
    TINY_SEED,
    TINY_SIZE,
    player,
    prompt,
    save_video,
    tiny_student,
)
from ..graph import Graph

NARROW = (270, 0)  # pixels: the width of a prompt among many columns


def save_memory(g: Graph) -> None:
    g.note(f"""
# Keep a clip to go on from

Makes a clip and keeps what going on takes: its memory (**output/salt_memories**) and its latents (**output/latents**).
**Salt Inspect Memory** shows what the memory holds. Then, today or another day, open the template **extend a saved
clip**.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g, player=(340, 440))
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, seconds=3.0, **TINY_SIZE, nfe="4",
        seed=TINY_SEED,
    )  # fmt: skip
    g.group("Keep", 3)
    g.add("SaltSaveMemory", memory=rollout["memory"], filename_prefix=f"salt_memories/{CLIP_NAME}", room=50)
    g.add("SaveLatent", samples=rollout["LATENT"], filename_prefix=f"latents/{CLIP_NAME}")
    g.group("What it holds", 4)
    g.add("SaltInspectMemory", memory=rollout["memory"], size=(340, 300), room=100)
    g.group("Decode", 3)
    decoded = g.add("SaltDecode", latents=rollout["LATENT"], vae=loaders.vae)
    player(g, loaders, decoded["VIDEO"], g.name, 4)


def extend_from_memory(g: Graph) -> None:
    g.note(f"""
# Go on from a saved memory

**Run the template "save memory of clip" first**: it makes the two files that are loaded here (press R to see new files
in the lists). **Salt Extend Video** goes on where the clip stopped and joins the new part; the result equals a clip
made in one go. A memory of another model is refused.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("The clip so far", 1)
    memory = g.add("SaltLoadMemory", model=loaders.model, file=f"salt_memories/{CLIP_NAME}_00001_.safetensors [output]")
    latents = g.add("LoadLatent", latent=f"latents/{CLIP_NAME}_00001_.latent [output]")["LATENT"]
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("Go on", 2)
    longer = g.add(
        "SaltExtendVideo", model=loaders.model, positive=positive, vae=loaders.vae, memory=memory["memory"],
        latents=latents, seconds=2.0, nfe="4", seed=TINY_SEED,
    )  # fmt: skip
    save_video(g, loaders, longer["LATENT"], g.name, 3)


def branch_memory(g: Graph) -> None:
    g.note(f"""
# One beginning, two endings

**Salt Rollout** makes the first two seconds and hands out its memory. Two **Salt Extend Video** go on from it, each
with its own prompt. A memory on a wire is never changed, so both start from the same moment, and the beginning is
made only once.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g, player=(300, 420))
    g.group("Prompts", 1)
    first = prompt(g, loaders, "a slow green triangle moving down", "The beginning", NARROW)
    endings = {
        "a": prompt(g, loaders, "a slow green triangle moving up", "Ending A", NARROW),
        "b": prompt(g, loaders, "a slow green triangle moving right", "Ending B", NARROW),
    }
    g.group("The beginning", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=first, vae=loaders.vae, seconds=2.25, **TINY_SIZE, nfe="4", seed=2,
        size=(300, 0),
    )  # fmt: skip
    g.group("Two endings", 3)
    longer = {
        name: g.add(
            "SaltExtendVideo", title=f"Ending {name.upper()}", model=loaders.model, positive=positive,
            memory=rollout["memory"], latents=rollout["LATENT"], seconds=3.0, seed=2, nfe="4", room=60,
            size=(300, 0),
        )
        for name, positive in endings.items()
    }  # fmt: skip
    for name, extended in longer.items():
        g.group(f"Decode {name.upper()}", 4)
        decoded = g.add("SaltDecode", latents=extended["LATENT"], vae=loaders.vae)
        player(g, loaders, decoded["VIDEO"], f"{g.name}_{name}", 5, f"Video {name.upper()}")
