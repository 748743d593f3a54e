"""Workflows that start from pictures or videos, and what core's nodes do with a clip afterwards."""

from __future__ import annotations

from ..building_blocks import (
    CAT_PROMPT,
    ESRGAN,
    FILM,
    PICTURE_PROMPT,
    SALT_CF,
    SEED_NOTE,
    SWAP_NOTE,
    TINY_PROMPT,
    TINY_PROMPT_NOTE,
    TINY_SEED,
    TINY_SIZE,
    UMT5,
    WAN_VAE,
    files_note,
    player,
    prompt,
    released_student,
    save_video,
    tiny_student,
)
from ..graph import Graph

START_FRAMES = 9  # of the first clip's 21: three latent frames


def image_to_video_start(g: Graph) -> None:
    g.note(
        f"""
# A picture that goes on

Any picture becomes the first latent frame; the prompt says what happens next. No I2V model is needed.

{files_note(SALT_CF, UMT5, WAN_VAE)}

{SEED_NOTE}
""",
        columns=3,
    )
    loaders = released_student(g, SALT_CF["name"], [SALT_CF])
    g.group("Start", 1)
    image = g.add("LoadImage", image="example.png", title="Start image", size=(300, 338))["IMAGE"]
    g.group("Prompt", 1)
    positive = prompt(g, loaders, PICTURE_PROMPT)
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, start_image=image, seconds=5.0,
        width=832, height=480, nfe="4",
    )  # fmt: skip
    save_video(g, loaders, rollout["LATENT"], g.name, 3)


def video_start(g: Graph) -> None:
    g.note(f"""
# A video that goes on

The frames of a video are read into the memory, and the clip goes on from them under a prompt of its own. Here the video
is a short clip that is made first. **For your own** connect **Load Video** to **Get Video Components**; in **Get Image
from Batch** choose the frames to start with (**length** 1, 5, 9, 13, ...).

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g, player=(300, 460))
    g.group("Prompts", 1)
    before = prompt(g, loaders, "a slow red circle moving right", "Before", (260, 0))
    after = prompt(g, loaders, "a slow red circle moving up", "After", (260, 0))
    g.group("A video to start from", 2)
    first = g.add(
        "SaltRollout", title="The video", model=loaders.model, positive=before, vae=loaders.vae, seconds=1.5,
        **TINY_SIZE, nfe="4", seed=3, size=(290, 0),
    )  # fmt: skip
    g.group("Its frames", 3)
    video = g.add("SaltDecode", latents=first["LATENT"], vae=loaders.vae)["VIDEO"]
    frames = g.add("GetVideoComponents", video=video, size=(240, 0))["images"]
    start = g.add("ImageFromBatch", image=frames, batch_index=0, length=START_FRAMES, size=(240, 0))["IMAGE"]
    g.group("Goes on", 4)
    rollout = g.add(
        "SaltRollout", title="Goes on", model=loaders.model, positive=after, vae=loaders.vae, start_image=start,
        seconds=4.0, **TINY_SIZE, nfe="4", seed=3, size=(290, 0),
    )  # fmt: skip
    g.group("Video", 5)
    decoded = g.add("SaltDecode", latents=rollout["LATENT"], vae=loaders.vae)
    g.add("SaveVideo", video=decoded["VIDEO"], filename_prefix=f"salt/{g.name}", size=loaders.player)


def upscale(g: Graph) -> None:
    g.note(f"""
# A larger clip, by core's nodes

The frames of **Salt Decode (streaming)** go through any of core's image nodes: here **Upscale Image By**, four times,
and **Create Video**, 16 frames a second, as Wan's clips have. A model that adds detail, and frames in between, are in
the template **upscale and frame interpolation**.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, seconds=3.0, **TINY_SIZE, nfe="4",
        seed=TINY_SEED,
    )  # fmt: skip
    g.group("Larger", 3)
    frames = g.add("SaltDecode", latents=rollout["LATENT"], vae=loaders.vae)["IMAGE"]
    larger = g.add("ImageScaleBy", image=frames, upscale_method="lanczos", scale_by=4.0)["IMAGE"]
    video = g.add("CreateVideo", images=larger, fps=16.0)["VIDEO"]
    player(g, loaders, video, g.name, 4)


def upscale_interpolate(g: Graph) -> None:
    g.note(
        f"""
# More frames and more pixels, by core's models

**Run Frame Interpolation Model** doubles the frames, **Upscale Image (using Model)** makes them four times as large,
and **Upscale Image By** halves that again: 32 frames a second at 1664 x 960.

{files_note(SALT_CF, UMT5, WAN_VAE, FILM, ESRGAN)}
""",
        columns=3,
    )
    loaders = released_student(g, SALT_CF["name"], [SALT_CF])
    g.group("Prompt", 1)
    positive = prompt(g, loaders, CAT_PROMPT)
    g.group("After the clip", 1)
    film = g.add("FrameInterpolationModelLoader", model_name=FILM["name"], models=[FILM])["INTERP_MODEL"]
    model = g.add("UpscaleModelLoader", model_name=ESRGAN["name"], models=[ESRGAN])["UPSCALE_MODEL"]
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, seconds=5.0, width=832, height=480,
        nfe="4",
    )  # fmt: skip
    g.group("Larger", 3)
    frames = g.add("SaltDecode", latents=rollout["LATENT"], vae=loaders.vae)["IMAGE"]
    between = g.add("FrameInterpolate", interp_model=film, images=frames, multiplier=2)["IMAGE"]
    large = g.add("ImageUpscaleWithModel", upscale_model=model, image=between)["IMAGE"]
    half = g.add("ImageScaleBy", image=large, upscale_method="area", scale_by=0.5)["IMAGE"]
    video = g.add("CreateVideo", images=half, fps=32.0)["VIDEO"]
    player(g, loaders, video, g.name, 4)
