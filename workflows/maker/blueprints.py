"""Blueprints: subgraphs in ComfyUI's node library, each from nothing to a clip in one node.

ComfyUI reads them from the pack's folder `subgraphs`; the file name is the name in the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .building_blocks import (
    CAT_PROMPT,
    SALT_CF,
    TINY_PROMPT,
    TINY_SEED,
    TINY_SIZE,
    Loaders,
    released_student,
    tiny_student,
)
from .parts import Node, Wire
from .subgraphs import Subgraph

Draw = Callable[[Subgraph], None]
CATEGORY = "Video generation and editing/Salt"
WIDE = {"width": 832, "height": 480}


def _prompt(g: Subgraph, loaders: Loaders, text: str) -> Wire:
    given = g.input("prompt", "STRING", text, multiline=True)
    g.group("Prompt", 1)
    return g.add("CLIPTextEncode", clip=loaders.clip, text=given)["CONDITIONING"]


def _clip(g: Subgraph, loaders: Loaders, made: Node) -> None:
    """Decode and save what was made, and hand it on."""
    g.group("Decode", 3)
    decoded = g.add("SaltDecode", latents=made["LATENT"], vae=loaders.vae)
    g.group("Video", 4)
    g.add("SaveVideo", video=decoded["VIDEO"], filename_prefix="video/salt")
    g.promote(made, "seed")
    g.preview(made)
    g.output("VIDEO", decoded["VIDEO"])
    g.output("LATENT", made["LATENT"])
    g.output("memory", made["memory"])


def _rollout(g: Subgraph, loaders: Loaders, text: str, size: dict[str, int], seed: int) -> None:
    positive = _prompt(g, loaders, text)
    seconds = g.input("seconds", "FLOAT", 5.0)
    g.group("Rollout", 2)
    made = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, seconds=seconds, **size, nfe="4",
        seed=seed,
    )  # fmt: skip
    _clip(g, loaders, made)


def text_to_video(g: Subgraph) -> None:
    """Makes a clip of salt-tiny, the embedded model, from a prompt and saves it; nothing is downloaded."""
    _rollout(g, tiny_student(g), TINY_PROMPT, TINY_SIZE, TINY_SEED)


def text_to_video_causal_forcing(g: Subgraph) -> None:
    """Makes a clip of Salt on Causal Forcing (Wan 2.1 1.3B, 4 evaluations a block) from a prompt and saves it."""
    _rollout(g, released_student(g, SALT_CF["name"], [SALT_CF]), CAT_PROMPT, WIDE, 0)


def extend(g: Subgraph) -> None:
    """Goes on with a clip of salt-tiny under another prompt: connect memory and LATENT of the clip so far."""
    loaders = tiny_student(g)
    memory, latents = g.input("memory", "SALT_MEMORY"), g.input("latents", "LATENT")
    positive = _prompt(g, loaders, "a fast purple square moving down")
    seconds = g.input("seconds", "FLOAT", 3.0)
    g.group("Go on", 2)
    made = g.add(
        "SaltExtendVideo", model=loaders.model, positive=positive, vae=loaders.vae, memory=memory, latents=latents,
        seconds=seconds, nfe="4", seed=TINY_SEED,
    )  # fmt: skip
    _clip(g, loaders, made)


def live(g: Subgraph) -> None:
    """A clip of salt-tiny that is steered while it plays: press Run, then Enter Subgraph. A recording is kept."""
    loaders = tiny_student(g)
    given = g.input("prompt", "STRING", TINY_PROMPT, multiline=True)
    seconds = g.input("seconds", "FLOAT", 60.0)
    g.group("Live", 1)
    made = g.add(
        "SaltLive", model=loaders.model, clip=loaders.clip, vae=loaders.vae, prompt=given, seconds=seconds, **TINY_SIZE,
        nfe="2", seed=TINY_SEED,
    )  # fmt: skip
    g.promote(made, "seed")
    g.output("VIDEO", made["VIDEO"])
    g.output("LATENT", made["LATENT"])
    g.output("memory", made["memory"])


BLUEPRINTS: dict[str, tuple[Draw, list[str]]] = {
    "Salt text to video (needs nothing)": (text_to_video, ["text to video", "streaming video", "salt tiny", "demo"]),
    "Salt text to video (Causal Forcing 1.3B)": (
        text_to_video_causal_forcing,
        ["text to video", "autoregressive", "causal", "self forcing", "wan"],
    ),
    "Salt extend video (needs nothing)": (extend, ["continue video", "longer", "video continuation", "infinite"]),
    "Salt live video (needs nothing)": (live, ["real time", "interactive", "steer", "world model", "stream"]),
}


def build_blueprint(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A blueprint in the browser's format."""
    draw, aliases = BLUEPRINTS[name]
    inside = Subgraph(name, definitions, CATEGORY, (draw.__doc__ or "").strip())
    draw(inside)
    return inside.blueprint(aliases)
