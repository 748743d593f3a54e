"""Workflows of students whose files are downloaded or trained."""

from __future__ import annotations

from ..building_blocks import (
    CAT_PROMPT,
    CLIP_H,
    PICTURE_PROMPT,
    SALT_CF,
    SALT_LL,
    SEED_NOTE,
    UMT5,
    WAN_VAE,
    Loaders,
    files_note,
    player,
    prompt,
    released_student,
    text_to_video,
)
from ..graph import Graph
from ..parts import Wire
from .tiny import SCHEDULE_NOTE, scheduled_prompts

WIDE = {"width": 832, "height": 480}
OWN_LORA = "your_lora_for_wan2.1_1.3b.safetensors"


def causal_forcing(g: Graph, nfe: str, words: str) -> None:
    g.note(f"""
# Salt on Causal Forcing, {nfe} NFE

A few-step causal student of Wan 2.1 1.3B: five seconds, block by block, {nfe} model evaluations a block. {words}

{files_note(SALT_CF, UMT5, WAN_VAE)}

Long prompts, as Wan likes them, work best. {SEED_NOTE}
""")
    loaders = released_student(g, SALT_CF["name"], [SALT_CF])
    text_to_video(g, loaders, CAT_PROMPT, seconds=5.0, **WIDE, nfe=nfe)


def salt_causal_forcing_4nfe(g: Graph) -> None:
    causal_forcing(g, "4", "This is what it was trained for.")


def salt_causal_forcing_2nfe(g: Graph) -> None:
    causal_forcing(g, "2", "Half the work of the usual four; Salt's training is what makes two hold together.")


def salt_longlive_30s(g: Graph) -> None:
    g.note(f"""
# Salt on LongLive, 30 seconds

The student's memory is a window of 12 latent frames and a sink of the first 3, which the MODEL brings with it: every
block takes the same time and memory, however long the clip. So does decoding, by **Salt Decode
(streaming)**.

{files_note(SALT_LL, UMT5, WAN_VAE)}

{SEED_NOTE}
""")
    loaders = released_student(g, SALT_LL["name"], [SALT_LL])
    text_to_video(g, loaders, CAT_PROMPT, seconds=30.0, **WIDE, nfe="4")


def interactive_prompts(g: Graph) -> None:
    g.note(f"""
# Prompts that change while the clip is made

{SCHEDULE_NOTE}

{files_note(SALT_LL, UMT5, WAN_VAE)}

The template **(needs nothing) prompts that change midway** is the same with nothing to download.
""")
    timeline = (
        f"0: {CAT_PROMPT}\n"
        "8 recache: The ginger cat on the stone wall sits down and looks out over the sea, the sun has set, blue dusk, "
        "the camera stands still.\n"
        "16 recache: The ginger cat on the stone wall curls up and sleeps, night, stars over the sea, a lantern glows."
    )
    loaders = released_student(g, SALT_LL["name"], [SALT_LL])
    scheduled_prompts(g, loaders, timeline, seconds=24.0, **WIDE, nfe="4")


def lora(g: Graph) -> None:
    g.note(f"""
# A LoRA on a causal student

Any LoRA of Wan 2.1 T2V 1.3B: put its file into **models/loras**, press R, and choose it in **Load LoRA**. It was
trained for the teacher, so start at **strength_model** 0.8 and write its trigger words into the prompt.

{files_note(SALT_CF, UMT5, WAN_VAE)}

{SEED_NOTE}
""")
    loaders = released_student(g, SALT_CF["name"], [SALT_CF])
    g.group("LoRA", 1)
    patched = g.add("LoraLoaderModelOnly", model=loaders.model, lora_name=OWN_LORA, strength_model=0.8, size=(0, 142))[
        "MODEL"
    ]
    with_lora = Loaders(patched, loaders.clip, loaders.vae, loaders.player)
    text_to_video(g, with_lora, CAT_PROMPT, seconds=5.0, **WIDE, nfe="4")


def bidirectional(g: Graph, loaders: Loaders, positive: Wire, latent: Wire, column: int) -> None:
    """Add core's custom sampling with the student's steps."""
    g.group("Few-step sampling", column)
    sigmas = g.add("SaltSigmas", model=loaders.model, nfe="4", size=(230, 0))["SIGMAS"]
    sampler = g.add("KSamplerSelect", sampler_name="lcm", size=(230, 0))["SAMPLER"]
    guider = g.add("BasicGuider", model=loaders.model, conditioning=positive, size=(230, 0))["GUIDER"]
    noise = g.add("RandomNoise", noise_seed=0, size=(230, 0))["NOISE"]
    g.group("Sample and decode", column + 1)
    made = g.add(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent,
        size=(230, 0), room=300,
    )  # fmt: skip
    decoded = g.add("SaltDecode", latents=made["output"], vae=loaders.vae)
    player(g, loaders, decoded["VIDEO"], g.name, column + 2)


BIDIRECTIONAL_NOTE = """
A student of SC-DMD that makes the whole clip at once: core's own sampling with the steps of **Salt Sigmas**. **lcm**
mixes in fresh noise, as in training; **euler** takes straight steps. **No such weights are published yet**: train one
(python -m train, recipe {recipe}) and put it into **models/diffusion_models**.
"""


def bidirectional_t2v(g: Graph) -> None:
    g.note(f"""
# SC-DMD student of Wan 2.1 T2V, 4 NFE

{BIDIRECTIONAL_NOTE.format(recipe="t2v_sc")}
{files_note(UMT5, WAN_VAE)}
""")
    loaders = released_student(g, "salt_bidirectional_t2v_1.3b.safetensors", trained_as="bidirectional")
    g.group("Prompt and length", 1)
    positive = prompt(g, loaders, CAT_PROMPT)
    latent = g.add("EmptyHunyuanLatentVideo", title="Size and length", **WIDE, length=81)["LATENT"]
    bidirectional(g, loaders, positive, latent, 2)


def bidirectional_i2v(g: Graph) -> None:
    g.note(
        f"""
# SC-DMD student of Wan 2.1 I2V, 4 NFE

{BIDIRECTIONAL_NOTE.format(recipe="i2v_sc")}
{files_note(UMT5, WAN_VAE, CLIP_H)}
""",
        columns=4,
    )
    loaders = released_student(g, "salt_bidirectional_i2v_14b.safetensors", trained_as="bidirectional")
    vision = g.add("CLIPVisionLoader", clip_name=CLIP_H["name"], models=[CLIP_H])["CLIP_VISION"]
    g.group("Picture and prompt", 1)
    image = g.add("LoadImage", image="example.png", title="Start image", size=(260, 330))["IMAGE"]
    positive = prompt(g, loaders, PICTURE_PROMPT, size=(260, 0))
    g.group("What the model is given", 2)
    seen = g.add("CLIPVisionEncode", clip_vision=vision, image=image, crop="none", size=(230, 0))["CLIP_VISION_OUTPUT"]
    given = g.add(
        "WanImageToVideo", positive=positive, negative=positive, vae=loaders.vae, clip_vision_output=seen,
        start_image=image, **WIDE, length=81, size=(230, 0),
    )  # fmt: skip
    bidirectional(g, loaders, given["positive"], given["latent"], 3)
