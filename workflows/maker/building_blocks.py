"""Shared parts of the workflows: downloads, loaders, prompts, videos, and the paragraphs of their notes.

A note is written for both front ends: names of widgets and nodes in bold, and no code, which is hard to read there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .graph import Graph
from .parts import Wire

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
FILM = download(
    f"{HUB}/Comfy-Org/frame_interpolation/resolve/main/frame_interpolation/film_net_fp16.safetensors",
    "frame_interpolation",
)
ESRGAN = download(
    f"{HUB}/Comfy-Org/Real-ESRGAN_repackaged/resolve/main/RealESRGAN_x4plus.safetensors", "upscale_models"
)

TINY_PROMPT = "a fast purple square moving up"
TINY_SEED = 11  # shows the shape in the middle of the picture
TINY_SIZE = {"width": 64, "height": 64}
CAT_PROMPT = (
    "A ginger cat walks along a stone wall above the sea at sunset, tail high, warm light on its fur, waves below, "
    "the camera follows at its side."
)
PICTURE_PROMPT = "The scene of the picture comes to life, slow camera move forward, soft light."
TINY_PROMPT_NOTE = (
    "The embedded model knows a small world: **a fast** (or slow) **purple** (red, green, blue, yellow, cyan) "
    "**square** (circle, triangle) **moving up** (down, left, right)."
)
CLIP_NAME = "salt_tiny_clip"
SWAP_NOTE = (
    "**With a released student** put **Load Salt Student**, **Load CLIP** (type wan) and **Load VAE** in the place of "
    "**Load Salt Tiny**, with **width** 832 and **height** 480."
)
SEED_NOTE = "A second run with the same **seed** changes nothing: change it for another clip."


def files_note(*models: dict[str, str]) -> str:
    """The part of a note that lists the required files and their folders."""
    lines = [f"- **models/{m['directory']}**: [{m['name']}]({m['url']})" for m in models]
    return "\n".join(["**Files** (the browser offers to download what is missing):", "", *lines])


@dataclass(frozen=True)
class Loaders:
    """The outputs of a graph's loaders, and the width and height of its video player in pixels."""

    model: Wire
    clip: Wire
    vae: Wire
    player: tuple[int, int]


def tiny_student(g: Graph, width: int = 0, player: tuple[int, int] = (340, 500)) -> Loaders:
    """Add the loader of the embedded model."""
    g.group("Model (embedded)", 0)
    loaded = g.add("SaltLoadTiny", size=(width, 0))
    return Loaders(loaded["MODEL"], loaded["CLIP"], loaded["VAE"], player)


def released_student(
    g: Graph, student: str, models: list[dict[str, str]] | None = None, trained_as: str = "auto"
) -> Loaders:
    """Add the loaders of a student file and of Wan's text encoder and VAE."""
    g.group("Models", 0)
    loaded = g.add("SaltLoadStudent", student=student, trained_as=trained_as, models=models)
    clip = g.add("CLIPLoader", clip_name=UMT5["name"], type="wan", models=[UMT5])
    vae = g.add("VAELoader", vae_name=WAN_VAE["name"], models=[WAN_VAE])
    return Loaders(loaded["MODEL"], clip["CLIP"], vae["VAE"], (420, 400))


def prompt(g: Graph, loaders: Loaders, text: str, title: str = "Prompt", size: tuple[int, int] = (0, 0)) -> Wire:
    """Add the encoder of a prompt; its CONDITIONING."""
    return g.add("CLIPTextEncode", title=title, clip=loaders.clip, text=text, size=size)["CONDITIONING"]


def player(g: Graph, loaders: Loaders, video: Wire, name: str, column: int, title: str = "Video") -> None:
    """Add saving of a video file, which the node then plays."""
    g.group(title, column)
    g.add("SaveVideo", video=video, filename_prefix=f"salt/{name}", size=loaders.player)


def save_video(g: Graph, loaders: Loaders, latent: Wire, name: str, column: int, title: str = "Video") -> None:
    """Add streaming decoding and saving of a video file, in two columns."""
    g.group("Decode", column)
    decoded = g.add("SaltDecode", latents=latent, vae=loaders.vae)
    player(g, loaders, decoded["VIDEO"], name, column + 1, title)


def text_to_video(g: Graph, loaders: Loaders, text: str, **widgets: Any) -> None:
    """Add a prompt, a rollout and a video."""
    g.group("Prompt", 1)
    positive = prompt(g, loaders, text)
    g.group("Rollout", 2)
    rollout = g.add("SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, **widgets)
    save_video(g, loaders, rollout["LATENT"], g.name, 3)
