"""Inputs that several nodes share, built in one place."""

from __future__ import annotations

from comfy_api.latest import io

from ..salt.video_in.strength import DEFAULT_STRENGTH
from .adapter.connections import MAX_CFG
from .adapter.core_versions import ADVANCED
from .adapter.rollout_inputs import NFE, STEPPING, STUDENT_STEPS
from .io_types import Memory, Policy, Prompts

CLIP_LENGTH = (
    "Length at the MODEL's rate (16 frames a second; Wan 2.2 TI2V: 24), rounded up to whole blocks (0.75 s for blocks "
    "of 3 at 16)."
)


VAE = (
    "Wan 2.1's VAE (Wan 2.2's for TI2V), for a start image, a video and full-quality live previews. Without it "
    "previews use TAEHV (taew2_1 in models/vae_approx) or show latent colours."
)


def model_sockets(vae: str = VAE) -> list[io.Input]:
    """The sockets that Salt Rollout and Salt Extend Video start with, in order. vae: its tooltip."""
    return [
        io.Model.Input("model", tooltip="An autoregressive student of Wan 2.1 or 2.2 TI2V, from any loader."),
        io.Conditioning.Input("positive", optional=True, tooltip="The prompt; or connect prompts."),
        Prompts.Input("prompts", optional=True, tooltip="Prompts at seconds, from Salt Prompt Schedule."),
        io.Conditioning.Input("negative", optional=True, tooltip="Only for cfg other than 1."),
        io.Vae.Input("vae", optional=True, tooltip=vae),
    ]


def policy_socket() -> io.Input:
    return Policy.Input("policy", optional=True, tooltip="What the memory keeps; without it, the MODEL's own.")


def start_sockets(needed: str) -> list[io.Input]:
    """What a clip goes on from or starts with. needed: what the clip so far is needed for, beside a memory."""
    return [
        Memory.Input("memory", optional=True, tooltip="The clip to continue. It is copied, never changed."),
        io.Image.Input("start_image", optional=True, tooltip="Picture or frames that the clip starts with."),
        io.Latent.Input(
            "latents",
            optional=True,
            tooltip=f"Latents that the clip starts with; with a memory: the clip so far, {needed}.",
        ),
    ]


def seconds_widget(tooltip: str, default: float = 5.0, min: float = 0.1, max: float = 3600.0, **folded: bool):
    """Quarters of a second by its arrows, hundredths by typing."""
    return io.Float.Input(
        "seconds", default=default, min=min, max=max, step=0.25, round=0.01, tooltip=tooltip, **folded
    )


def size_widgets(width: str, height: str) -> list[io.Input]:
    """width and height in pixels, with these tooltips; 0 is the MODEL's own (`adapter.model_size`)."""
    return [
        io.Int.Input(name, default=0, min=0, max=4096, step=16, tooltip=tooltip)
        for name, tooltip in (("width", width), ("height", height))
    ]


def frames_per_block_widget(tooltip: str, **folded: bool) -> io.Input:
    return io.Int.Input("frames_per_block", default=0, min=0, max=21, tooltip=tooltip, **folded)


def stepping_widget(**folded: bool) -> io.Input:
    return io.Combo.Input(
        "stepping",
        options=STEPPING,
        default="sde",
        tooltip="sde adds fresh noise between steps, as in training; ode takes Euler steps.",
        **folded,
    )


def step_widgets() -> list[io.Input]:
    """The widgets that choose the step list, on every node that samples."""
    return [
        io.Combo.Input(
            "nfe",
            options=NFE,
            default=STUDENT_STEPS,
            tooltip="Model evaluations per block: fewer is faster. student's uses what the MODEL was trained for (4 "
            "if unknown); '4, then 1' takes 4 in the clip's first block, which has no past, and 1 in the others; "
            "custom uses the list in steps.",
        ),
        io.String.Input(
            "steps",
            default="1000, 750, 500, 250",
            tooltip="For nfe custom: falling steps in (0, 1000], before the shift.",
            **ADVANCED,
        ),
        io.Float.Input(
            "shift",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Flow shift. 0 uses what the MODEL was trained for (5 if unknown, as for every published Wan "
            "student).",
            **ADVANCED,
        ),
    ]


def sampling_widgets(stepping: bool = True) -> list[io.Input]:
    """The widgets that Salt Rollout and Salt Extend Video end with, in order. stepping: with that one."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="The same seed gives the same blocks at any length: a longer clip starts like the shorter one.",
        ),
        *step_widgets(),
        *([stepping_widget(**ADVANCED)] if stepping else []),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=MAX_CFG,
            step=0.1,
            tooltip="Guidance. Few-step students need none: 1 is off. Otherwise every step is evaluated twice.",
            **ADVANCED,
        ),
        frames_per_block_widget("Latent frames per block; 0 uses what the MODEL was trained for.", **ADVANCED),
    ]


VIDEO = (
    "A video (or frames, at the MODEL's rate) that is changed: every block starts from its noised latents. Needs vae. "
    "The clip has its whole blocks, up to seconds."
)
STRENGTH = (
    "With video: how far it may be changed, by leaving out the first steps. 0 only encodes it, 1 leaves nothing of it."
)


def video_inputs(video: str = VIDEO, strength: str = STRENGTH) -> list[io.Input]:
    """A video that is changed, and how far, with these tooltips. They come after all other inputs."""
    return [
        io.MultiType.Input(
            "video",
            types=[io.Video, io.Image],
            optional=True,
            tooltip=video,
        ),
        io.Float.Input(
            "strength",
            default=DEFAULT_STRENGTH,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip=strength,
            **ADVANCED,
        ),
    ]
