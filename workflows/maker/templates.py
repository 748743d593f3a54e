"""The shared workflows: the nodes of each, and the note beside them. Function names are file names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .building_blocks import (
    CAT_PROMPT,
    CLIP_H,
    CLIP_NAME,
    EXTEND_SIZE,
    ROLLOUT_SIZE,
    SALT_CF,
    SALT_LL,
    SEED_NOTE,
    SWAP_NOTE,
    TINY_PROMPT,
    TINY_PROMPT_NOTE,
    TINY_SEED,
    UMT5,
    WAN_VAE,
    Loaders,
    files_note,
    prompt,
    released_student,
    save_video,
    text_to_video,
    tiny_student,
)
from .graph import Graph, Wire


def tiny_text_to_video(g: Graph) -> None:
    g.note(f"""
# Salt, at once
Press **Run**: nothing is downloaded, and a CPU will do. Blocks of three latent frames (twelve frames of video) appear
in *Salt Rollout* as they are made.

{TINY_PROMPT_NOTE}

{SEED_NOTE}

{SWAP_NOTE}
""")
    text_to_video(g, tiny_student(g), TINY_PROMPT, seconds=5.0, width=64, height=64, nfe="4", seed=TINY_SEED)


def causal_forcing(g: Graph, nfe: str, words: str) -> None:
    g.note(f"""
# Salt on Causal Forcing, {nfe} NFE
A few-step causal student of Wan 2.1 1.3B: five seconds, block by block, {nfe} model evaluations a block. {words}

{files_note(SALT_CF, UMT5, WAN_VAE)}

Long prompts, as Wan likes them, work best. {SEED_NOTE}
""")
    loaders = released_student(g, SALT_CF["name"], [SALT_CF])
    text_to_video(g, loaders, CAT_PROMPT, seconds=5.0, width=832, height=480, nfe=nfe)


def salt_causal_forcing_4nfe(g: Graph) -> None:
    causal_forcing(g, "4", "This is what it was trained for.")


def salt_causal_forcing_2nfe(g: Graph) -> None:
    causal_forcing(g, "2", "Half the work of the usual four; Salt's training is what makes two hold together.")


def salt_longlive_30s(g: Graph) -> None:
    g.note(f"""
# Salt on LongLive, 30 seconds
The student's memory is a window of 12 latent frames and a sink of the first 3, which the MODEL remembers by itself:
every block takes the same time and room, however long the clip. *Salt Decode* streams, so that does the decoding.

{files_note(SALT_LL, UMT5, WAN_VAE)}

{SEED_NOTE}
""")
    loaders = released_student(g, SALT_LL["name"], [SALT_LL])
    text_to_video(g, loaders, CAT_PROMPT, seconds=30.0, width=832, height=480, nfe="4")


PROMPT_SCHEDULE_NOTE = """
A line of *Salt Prompt Schedule* is `SECONDS [keep|recache|cut]: PROMPT`:
- **keep** changes the words only: the change comes slowly,
- **recache** lets the last seconds be read again under the new words, so that they take hold at once (LongLive),
- **cut** forgets the scene.
"""


def scheduled_prompts(g: Graph, loaders: Loaders, timeline: str, **widgets: Any) -> None:
    """Add a prompt schedule, a rollout and a video."""
    g.group("Prompts", 1)
    prompts = g.add("SaltPromptSchedule", clip=loaders.clip, timeline=timeline, size=(520, 300))["prompts"]
    g.group("Rollout", 2)
    rollout = g.add("SaltRollout", model=loaders.model, prompts=prompts, vae=loaders.vae, size=ROLLOUT_SIZE, **widgets)
    save_video(g, loaders, rollout["LATENT"], g.name, 3)


def interactive_prompts(g: Graph) -> None:
    g.note(f"""
# Prompts that change as the clip is made
{PROMPT_SCHEDULE_NOTE}
{files_note(SALT_LL, UMT5, WAN_VAE)}

*tiny_interactive_prompts* is the same with nothing to download.
""")
    timeline = (
        f"0: {CAT_PROMPT}\n"
        "8 recache: The ginger cat on the stone wall sits down and looks out over the sea, the sun has set, blue dusk, "
        "the camera stands still.\n"
        "16 recache: The ginger cat on the stone wall curls up and sleeps, night, stars over the sea, a lantern glows."
    )
    loaders = released_student(g, SALT_LL["name"], [SALT_LL])
    scheduled_prompts(g, loaders, timeline, seconds=24.0, width=832, height=480, nfe="4")


def tiny_interactive_prompts(g: Graph) -> None:
    g.note(f"""
# Prompts that change, at once
{PROMPT_SCHEDULE_NOTE}
{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    timeline = "0: a slow green triangle moving down\n2.25 recache: a slow green triangle moving up"
    scheduled_prompts(g, tiny_student(g), timeline, seconds=5.0, width=64, height=64, nfe="4", seed=2)


def save_memory(g: Graph) -> None:
    g.note(f"""
# Keep a clip to go on from
Makes a clip and keeps what going on takes: its memory (`output/salt_memories/`) and its latents (`output/latents/`).
*Salt Inspect Memory* shows what the memory holds. Then, today or another day, open **extend_from_memory**.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, seconds=3.0, width=64, height=64,
        nfe="4", seed=TINY_SEED, size=ROLLOUT_SIZE,
    )  # fmt: skip
    g.group("Keep", 3)
    g.add("SaltSaveMemory", memory=rollout["memory"], filename_prefix=f"salt_memories/{CLIP_NAME}", size=(420, 170))
    g.add("SaveLatent", samples=rollout["LATENT"], filename_prefix=f"latents/{CLIP_NAME}")
    g.add("SaltInspectMemory", memory=rollout["memory"], size=(420, 520))
    save_video(g, loaders, rollout["LATENT"], g.name, 4)


def extend_from_memory(g: Graph) -> None:
    g.note(f"""
# Go on from a saved memory
**Run save_memory first**: it makes the two files that are loaded here (press R to see new files in the lists).
*Salt Extend Video* goes on where the clip stopped and joins the new part; the result equals a clip made in one go.
A memory of another model is refused.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("The clip so far", 0)
    memory = g.add("SaltLoadMemory", model=loaders.model, file=f"salt_memories/{CLIP_NAME}_00001_.safetensors [output]")
    latents = g.add("LoadLatent", latent=f"latents/{CLIP_NAME}_00001_.latent [output]")["LATENT"]
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("Go on", 2)
    longer = g.add(
        "SaltExtendVideo", model=loaders.model, positive=positive, vae=loaders.vae, memory=memory["memory"],
        latents=latents, seconds=2.0, nfe="4", seed=TINY_SEED, size=EXTEND_SIZE,
    )  # fmt: skip
    save_video(g, loaders, longer["LATENT"], g.name, 3)


def image_to_video_start(g: Graph) -> None:
    g.note(f"""
# A picture that goes on
The picture becomes the first latent frame, and is read into the memory like any other; the prompt says what happens
next. This needs no I2V model. Any picture: it is cut to the size of the clip. Several frames (a video) may start a clip
as well.

{files_note(SALT_CF, UMT5, WAN_VAE)}

{SEED_NOTE}
""")
    loaders = released_student(g, SALT_CF["name"], [SALT_CF])
    g.group("Start and prompt", 1)
    image = g.add("LoadImage", image="example.png", title="Start image", size=(340, 520))["IMAGE"]
    positive = prompt(g, loaders, "The scene of the picture comes to life, slow camera move forward, soft light.")
    g.group("Rollout", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=positive, vae=loaders.vae, start_image=image, seconds=5.0,
        width=832, height=480, nfe="4", size=ROLLOUT_SIZE,
    )  # fmt: skip
    save_video(g, loaders, rollout["LATENT"], g.name, 3)


def branch_memory(g: Graph) -> None:
    g.note(f"""
# One beginning, two endings
*Salt Rollout* makes the first two seconds and hands out its memory. Two *Salt Extend Video* go on from it, each under
words of its own. A memory on a wire is never written, so both start from the same moment, and the beginning is made
only once.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("Prompts", 1)
    first = prompt(g, loaders, "a slow green triangle moving down", "The beginning")
    endings = {
        "a": prompt(g, loaders, "a slow green triangle moving up", "Ending A"),
        "b": prompt(g, loaders, "a slow green triangle moving right", "Ending B"),
    }
    g.group("The beginning", 2)
    rollout = g.add(
        "SaltRollout", model=loaders.model, positive=first, vae=loaders.vae, seconds=2.25, width=64, height=64, nfe="4",
        seed=2, size=ROLLOUT_SIZE,
    )  # fmt: skip
    g.group("Two endings", 3)
    longer = {
        name: g.add(
            "SaltExtendVideo", title=f"Ending {name.upper()}", model=loaders.model, positive=positive, vae=loaders.vae,
            memory=rollout["memory"], latents=rollout["LATENT"], seconds=3.0, seed=2, nfe="4", size=EXTEND_SIZE,
        )
        for name, positive in endings.items()
    }  # fmt: skip
    for name, extended in longer.items():
        save_video(g, loaders, extended["LATENT"], f"{g.name}_{name}", 4, f"Video {name.upper()}")


def bidirectional(g: Graph, loaders: Loaders, positive: Wire, latent: Wire, column: int) -> None:
    """Add core's custom sampling with the student's steps."""
    g.group("Few-step sampling", column)
    sigmas = g.add("SaltSigmas", model=loaders.model, nfe="4")["SIGMAS"]
    sampler = g.add("KSamplerSelect", sampler_name="lcm")["SAMPLER"]
    guider = g.add("BasicGuider", model=loaders.model, conditioning=positive)["GUIDER"]
    noise = g.add("RandomNoise", noise_seed=0)["NOISE"]
    made = g.add(
        "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )
    save_video(g, loaders, made["output"], g.name, column + 1)


BIDIRECTIONAL_NOTE = """
A student that makes the whole clip at once, distilled with SC-DMD in a few steps: no blocks, no memory, and core's own
sampling. *Salt Sigmas* has its steps. **lcm** mixes fresh noise in between them, as the student was trained; **euler**
takes straight steps. No guidance: that is distilled in.
"""


def bidirectional_t2v(g: Graph) -> None:
    g.note(f"""
# SC-DMD student of Wan 2.1 T2V, 4 NFE
{BIDIRECTIONAL_NOTE}
No such weights are published yet: train one (`python -m train`, recipe `t2v_sc`) and put it into
`models/diffusion_models/`, under this name or another.

{files_note(UMT5, WAN_VAE)}
""")
    loaders = released_student(g, "salt_bidirectional_t2v_1.3b.safetensors", trained_as="bidirectional")
    g.group("Prompt and length", 1)
    positive = prompt(g, loaders, CAT_PROMPT)
    latent = g.add("EmptyHunyuanLatentVideo", title="Size and length", width=832, height=480, length=81)["LATENT"]
    bidirectional(g, loaders, positive, latent, 2)


def bidirectional_i2v(g: Graph) -> None:
    g.note(f"""
# SC-DMD student of Wan 2.1 I2V, 4 NFE
{BIDIRECTIONAL_NOTE}
No such weights are published yet: train one (`python -m train`, recipe `i2v_sc`) and put it into
`models/diffusion_models/`, under this name or another.

{files_note(UMT5, WAN_VAE, CLIP_H)}
""")
    loaders = released_student(g, "salt_bidirectional_i2v_14b.safetensors", trained_as="bidirectional")
    vision = g.add("CLIPVisionLoader", clip_name=CLIP_H["name"], models=[CLIP_H])["CLIP_VISION"]
    g.group("Picture and prompt", 1)
    image = g.add("LoadImage", image="example.png", title="Start image", size=(340, 520))["IMAGE"]
    positive = prompt(g, loaders, "The scene of the picture comes to life, slow camera move forward, soft light.")
    g.group("What the model is given", 2)
    seen = g.add("CLIPVisionEncode", clip_vision=vision, image=image, crop="none")["CLIP_VISION_OUTPUT"]
    given = g.add(
        "WanImageToVideo", positive=positive, negative=positive, vae=loaders.vae, clip_vision_output=seen,
        start_image=image, width=832, height=480, length=81,
    )  # fmt: skip
    bidirectional(g, loaders, given["positive"], given["latent"], 3)


def compare_nfe(g: Graph) -> None:
    g.note(f"""
# 2, 4 and 8 NFE side by side
The same prompt and the same noise, with two, four and eight model evaluations a block, from left to right.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    decoded = []
    for nfe in ("2", "4", "8"):
        g.group(f"{nfe} NFE", 2)
        rollout = g.add(
            "SaltRollout", title=f"{nfe} NFE", model=loaders.model, positive=positive, seconds=5.0, width=64, height=64,
            nfe=nfe, seed=TINY_SEED, size=ROLLOUT_SIZE,
        )  # fmt: skip
        decoded.append(g.add("SaltDecode", latents=rollout["LATENT"], vae=loaders.vae)["IMAGE"])
    g.group("Side by side", 3)
    two = g.add("ImageStitch", image1=decoded[0], image2=decoded[1], spacing_width=4)["IMAGE"]
    three = g.add("ImageStitch", image1=two, image2=decoded[2], spacing_width=4)["IMAGE"]
    g.add("SaveAnimatedWEBP", images=three, filename_prefix=f"salt/{g.name}", fps=16.0, size=(480, 420))


def rollout_to_video(g: Graph) -> None:
    g.note(f"""
# A clip of any length, into a file
*Salt Rollout to Video* writes the clip to `output/video/` while it is made: the memory that it needs does not grow
with the length, the file plays from its first block on, and **Stop and keep** or Cancel leaves what was made.

{TINY_PROMPT_NOTE}

{SWAP_NOTE} For long clips connect *Salt Memory Policy* with a window.
""")
    loaders = tiny_student(g)
    g.group("Prompt", 1)
    positive = prompt(g, loaders, TINY_PROMPT)
    g.group("Rollout", 2)
    g.add(
        "SaltRolloutToVideo", model=loaders.model, positive=positive, vae=loaders.vae, seconds=20.0, width=64,
        height=64, nfe="2", seed=TINY_SEED, size=(360, 860),
    )  # fmt: skip


def live(g: Graph) -> None:
    g.note(f"""
# Steer a clip while it plays
Press **Run**: *Salt Live* shows the clip on the node. Type another direction, blend, pause, rewind by a click, then
**Stop and keep**: the recording is in `output/video/`. It stops by itself after a minute; `seconds` 0 runs until you
stop it.

{TINY_PROMPT_NOTE}

{SWAP_NOTE}
""")
    loaders = tiny_student(g)
    g.group("Live", 1)
    g.add(
        "SaltLive", model=loaders.model, clip=loaders.clip, vae=loaders.vae, prompt=TINY_PROMPT, seconds=60.0, width=64,
        height=64, nfe="2", seed=TINY_SEED, size=(540, 1240),
    )  # fmt: skip


WORKFLOWS: dict[str, Callable[[Graph], None]] = {
    draw.__name__: draw
    for draw in (
        tiny_text_to_video, salt_causal_forcing_4nfe, salt_causal_forcing_2nfe, salt_longlive_30s, interactive_prompts,
        tiny_interactive_prompts, save_memory, extend_from_memory, image_to_video_start, branch_memory,
        bidirectional_t2v, bidirectional_i2v, compare_nfe, rollout_to_video, live,
    )
}  # fmt: skip

# Cards instead of pictures, for workflows whose weights are not in the repository: a title and two lines of text.
CARDS: dict[str, tuple[str, ...]] = {
    "salt_causal_forcing_4nfe": ("Salt + Causal Forcing", "text to video, 5 s", "4 evaluations a block"),
    "salt_causal_forcing_2nfe": ("Salt + Causal Forcing", "text to video, 5 s", "2 evaluations a block"),
    "salt_longlive_30s": ("Salt + LongLive", "text to video, 30 s", "window 12, sink 3: memory stays flat"),
    "interactive_prompts": ("Interactive prompts", "Salt + LongLive, 24 s", "new words at 8 s and 16 s, with recache"),
    "image_to_video_start": ("Image to video", "Salt + Causal Forcing, 5 s", "a picture is the first frame"),
    "bidirectional_t2v": ("SC-DMD text to video", "Wan 2.1 T2V 1.3B, whole clip", "4 evaluations, core's samplers"),
    "bidirectional_i2v": ("SC-DMD image to video", "Wan 2.1 I2V 14B, whole clip", "4 evaluations, core's samplers"),
}
