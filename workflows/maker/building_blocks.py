"""Shared parts of the workflows: downloads, loaders, prompts, videos, and the paragraphs of their notes."""

from __future__ import annotations

from typing import Any

from .graph import Graph, Wire

HUB = "https://huggingface.co"
WAN_FILES = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"


def download(url: str, directory: str) -> dict[str, str]:
    """A file that the browser offers for download: its name, URL, and folder below models/."""
    return {"name": url.rpartition("/")[2], "url": url, "directory": directory}


SALT_CF = download(f"{HUB}/domiso/Salt/resolve/main/checkpoints/salt_cf.pt", "diffusion_models")
SALT_LL = download(f"{HUB}/domiso/Salt/resolve/main/checkpoints/salt_ll.pt", "diffusion_models")
UMT5 = download(f"{WAN_FILES}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders")
WAN_VAE = download(f"{WAN_FILES}/vae/wan_2.1_vae.safetensors", "vae")
CLIP_H = download(f"{WAN_FILES}/clip_vision/clip_vision_h.safetensors", "clip_vision")

TINY_PROMPT = "a fast purple square moving up"
TINY_SEED = 11  # shows the shape in the middle of the picture
CAT_PROMPT = (
    "A ginger cat walks along a stone wall above the sea at sunset, tail high, warm light on its fur, waves below, "
    "the camera follows at its side."
)
TINY_PROMPT_NOTE = (
    "The embedded model knows a small world of moving shapes: `a SPEED COLOUR SHAPE moving DIRECTION`, with slow or "
    "fast; red, green, blue, yellow, purple or cyan; circle, square or triangle; up, down, left or right."
)
CLIP_NAME = "salt_tiny_clip"
ROLLOUT_SIZE, EXTEND_SIZE = (360, 780), (360, 720)  # pixels, with the preview that a run shows below the widgets
SWAP_NOTE = (
    "**With a released student** put *Load Salt Student*, *Load CLIP* (type wan) and *Load VAE* in the place of "
    "*Load Salt Tiny*, and 832 x 480 for the size."
)
SEED_NOTE = (
    "The seed is fixed, so that a second run changes nothing; set *control after generate* to randomize for more."
)


def files_note(*models: dict[str, str]) -> str:
    """The part of a note that lists the required files and their folders."""
    lines = [f"- `models/{m['directory']}/` [{m['name']}]({m['url']})" for m in models]
    return "\n".join(["**Files** (the browser offers to download what is missing)", "", *lines])


class Loaders:
    """The outputs MODEL, CLIP and VAE of a graph's loaders, and the size of its video player in pixels."""

    def __init__(self, transformer: Wire, clip: Wire, vae: Wire, player: tuple[int, int] = (480, 460)) -> None:
        self.model, self.clip, self.vae, self.player = transformer, clip, vae, player


def tiny_student(g: Graph) -> Loaders:
    """Add the loader of the embedded model."""
    g.group("Model (nothing to download)", 0)
    loaded = g.add("SaltLoadTiny")
    return Loaders(loaded["MODEL"], loaded["CLIP"], loaded["VAE"], player=(340, 520))


def released_student(
    g: Graph, student: str, models: list[dict[str, str]] | None = None, trained_as: str = "auto"
) -> Loaders:
    """Add the loaders of a student file and of Wan's text encoder and VAE."""
    g.group("Models", 0)
    loaded = g.add("SaltLoadStudent", student=student, trained_as=trained_as, models=models)
    clip = g.add("CLIPLoader", clip_name=UMT5["name"], type="wan", models=[UMT5])
    vae = g.add("VAELoader", vae_name=WAN_VAE["name"], models=[WAN_VAE])
    return Loaders(loaded["MODEL"], clip["CLIP"], vae["VAE"])


def prompt(g: Graph, loaders: Loaders, text: str, title: str = "Prompt") -> Wire:
    """Add the encoder of a prompt; its CONDITIONING."""
    return g.add("CLIPTextEncode", title=title, clip=loaders.clip, text=text)["CONDITIONING"]


def save_video(g: Graph, loaders: Loaders, latent: Wire, name: str, column: int, title: str = "Video") -> None:
    """Add streaming decoding and saving of a video file."""
    g.group(title, column)
    decoded = g.add("SaltDecode", latents=latent, vae=loaders.vae)
    g.add("SaveVideo", video=decoded["VIDEO"], filename_prefix=f"salt/{name}", size=loaders.player)


def text_to_video(g: Graph, loaders: Loaders, text: str, **widgets: Any) -> None:
    """Add a prompt, a rollout and a video."""
    g.group("Prompt", 1)
    positive = prompt(g, loaders, text)
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, size=ROLLOUT_SIZE, **widgets
    )
    save_video(g, loaders, rollout["LATENT"], g.name, 3)
