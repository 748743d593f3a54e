"""Workflows that compare and choose: step counts, drafts, seeds, first frames."""

from __future__ import annotations

from ..building_blocks import (
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
from ..parts import Wire
from ..subgraphs import Subgraph

CLIP_FRAMES = 57  # of a clip of three seconds, in whole blocks


def side_by_side(g: Graph) -> Subgraph:
    """Three clips decoded and put beside each other."""
    inside = Subgraph("Side by side", g.definitions)
    inside.group("Decode", 0)
    vae = inside.input("vae", "VAE")
    pictures = [
        inside.add("SaltDecode", latents=inside.input(name, "LATENT"), vae=vae)["IMAGE"]
        for name in ("left", "middle", "right")
    ]
    inside.group("Side by side", 1)
    two = inside.add("ImageStitch", image1=pictures[0], image2=pictures[1], spacing_width=4)["IMAGE"]
    inside.group("", 2)
    three = inside.add("ImageStitch", image1=two, image2=pictures[2], spacing_width=4)["IMAGE"]
    inside.group("", 3)
    inside.output("VIDEO", inside.add("CreateVideo", images=three, fps=16.0)["VIDEO"])
    return inside


def compare_nfe(g: Graph) -> None:
    g.note(
        f"""
# 2, 4 and 8 NFE side by side

The same prompt and the same noise, with two, four and eight model evaluations a block, from left to right.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""",
        columns=1,
    )
    loaders = tiny_student(g, width=310, player=(320, 320))
    g.group("Prompt", 0)
    positive = prompt(g, loaders, TINY_PROMPT, size=(310, 0))
    clips = {}
    for column, (place, nfe) in enumerate(zip(("left", "middle", "right"), ("2", "4", "8"), strict=True), 1):
        g.group(f"{nfe} NFE", column)
        clips[place] = g.add(
            "SaltRollout", title=f"{nfe} NFE", model=loaders.model, positive=positive, vae=loaders.vae, seconds=5.0,
            **TINY_SIZE, nfe=nfe, seed=TINY_SEED, size=(300, 0),
        )["LATENT"]  # fmt: skip
    g.group("Side by side", 4)
    together = side_by_side(g).node(g, width=320, vae=loaders.vae, **clips)
    g.add("SaveVideo", video=together["VIDEO"], filename_prefix=f"salt/{g.name}", size=loaders.player)


def draft_then_final(g: Graph) -> None:
    g.note(f"""
# A draft, and the clip that it promises

The draft takes 2 evaluations a block, the final clip 4, from the same noise: one **seed** goes to both. Look for a seed
with the draft alone (select the nodes of **Final** and press Ctrl+M to leave them out), then let the final clip be
made.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g, player=(300, 420))
    seed = g.add("PrimitiveInt", title="Seed for both", value=TINY_SEED, size=(225, 0))["INT"]
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT, size=(260, 0))
    latents = {}
    for column, (title, nfe) in enumerate((("Draft", "2"), ("Final", "4")), 2):
        g.group(title, column)
        latents[title] = g.add(
            "SaltRollout", title=title, model=loaders.model, positive=positive, vae=loaders.vae, seconds=5.0,
            **TINY_SIZE, nfe=nfe, seed=seed, size=(300, 0),
        )["LATENT"]  # fmt: skip
    for title, latent in latents.items():
        save_video(g, loaders, latent, f"{g.name}_{title.lower()}", 4, f"{title} video")


def every_clip(g: Graph) -> Subgraph:
    """The clips of a batch as videos of their own."""
    inside = Subgraph("A video of every clip", g.definitions)
    inside.group("", 0)
    latents, vae = inside.input("latents", "LATENT"), inside.input("vae", "VAE")
    images = inside.add("SaltDecode", latents=latents, vae=vae)["IMAGE"]
    inside.group("", 1)
    clips = inside.add("RebatchImages", images=images, batch_size=CLIP_FRAMES)["IMAGE"]
    inside.group("", 2)
    inside.output("VIDEO", inside.add("CreateVideo", images=clips, fps=16.0)["VIDEO"])
    return inside


def batch_prompts_seeds(g: Graph) -> None:
    g.note(f"""
# Several prompts, several seeds

Two prompts with three seeds each in one run: six videos. **batch_size** is how many clips a prompt gets, from **seed**
upwards, each as if made by itself. In **A video of every clip**, **batch_size** is the frames of one clip: 57 for 3
seconds, 81 for 5.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g, player=(300, 420))
    g.group("Prompts", 1)
    texts = {"a": TINY_PROMPT, "b": "a slow red circle moving right"}
    positives = {name: prompt(g, loaders, text, f"Prompt {name.upper()}", (260, 0)) for name, text in texts.items()}
    latents: dict[str, Wire] = {}
    for column, (name, positive) in enumerate(positives.items(), 2):
        g.group(f"Prompt {name.upper()}, three seeds", column)
        latents[name] = g.add(
            "SaltRollout", title=f"Clips {name.upper()}", model=loaders.model, positive=positive, vae=loaders.vae,
            seconds=3.0, **TINY_SIZE, batch_size=3, nfe="4", seed=TINY_SEED, size=(290, 0),
        )["LATENT"]  # fmt: skip
    inside = every_clip(g)
    for name, latent in latents.items():
        g.group(f"Clips {name.upper()}", 4)
        videos = inside.node(g, width=225, latents=latent, vae=loaders.vae)["VIDEO"]
        player(g, loaders, videos, f"{g.name}_{name}", 5, f"Videos {name.upper()}")


def first_frames(g: Graph) -> None:
    g.note(f"""
# Six first frames, to choose a seed by

The shortest clip, one block, for six seeds at once: **Save Image** shows the first frame of each, from **seed**
upwards. Put the seed that you like into the template **text to video**: its clip begins with this frame.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("One block, six seeds", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, seconds=0.5, **TINY_SIZE, batch_size=6,
        nfe="4", seed=TINY_SEED,
    )  # fmt: skip
    g.group("Its first frame", 3)
    cut = g.add("LatentCut", samples=rollout["LATENT"], dim="t", index=0, amount=1)["LATENT"]
    decoded = g.add("VAEDecode", samples=cut, vae=loaders.vae)["IMAGE"]
    g.group("Pictures", 4)
    g.add("SaveImage", images=decoded, filename_prefix=f"salt/{g.name}", size=(340, 420))
