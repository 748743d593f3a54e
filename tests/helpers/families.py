"""A small random pipeline of every family of students, with the settings that its authors use."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from salt.checkpoints.families import FRAMEWISE_2, KREA, STREAMDIFFUSION2
from salt.checkpoints.longlive2 import LONGLIVE2
from salt.pipeline import SaltPipeline
from salt.spec import StudentSpec

from . import golden_longlive2, tiny_system

WAN_FAMILIES = {
    "self forcing": StudentSpec(),
    "causal forcing": FRAMEWISE_2,
    "krea": KREA,
    "streamdiffusion2": STREAMDIFFUSION2,
}
FAMILIES = (*WAN_FAMILIES, "longlive2", "anyflow")
SIDES = dict.fromkeys(FAMILIES, 32) | {"longlive2": 64}  # pixels of a clip's height and width
RED, BLUE = "a red circle moving right", "a red"  # words that every family's text encoder knows


def pipeline(family: str, folder: Path) -> SaltPipeline:
    """folder: an empty one, for those that are loaded."""
    if family == "anyflow":
        made = SaltPipeline.from_pretrained(tiny_system.anyflow_folder(folder / "anyflow"))
    elif family == "longlive2":
        words = {"dim": 64, "max_length": 12, "vocabulary": ("a", "red", "circle", "moving", "right")}
        words["vocabulary"] += ("the", "scene", "transitions")
        made = SaltPipeline(golden_longlive2.student(), vae22(), student=LONGLIVE2, words=words)
    else:
        made = tiny_system.pipeline(spec=WAN_FAMILIES[family])
    made.set_progress_bar_config(disable=True)
    return made


def vae22() -> AutoencoderKLWan:
    """A random VAE of Wan 2.2's shape."""
    torch.manual_seed(8)
    return AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=48, num_res_blocks=1, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, latents_mean=[0.1] * 48, latents_std=[1.5] * 48,
    ).eval()  # fmt: skip
