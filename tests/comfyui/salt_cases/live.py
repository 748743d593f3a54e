"""Salt Live: steered by controls, recorded, and played again by Salt Rollout."""

from __future__ import annotations

import io as streams
import threading
from contextlib import contextmanager

import torch
from PIL import Image

from .running import counted, files, output_folder
from .session import PACK, error, run_case
from .tiny_model import PROMPT, part, refusal, rollout, text

LIVE, TINY = part("nodes.live.nodes_live"), part("nodes.nodes_tiny")
RUNNER, CONTROLS = part("nodes.adapter.live_runner"), part("salt.live.controls")
OTHER, THIRD = "a slow red circle moving right", "a fast green triangle moving left"
WIDGETS = dict(seed=3, nfe="2", steps="", shift=0.0, cfg=1.0, frames_per_block=0)


@contextmanager
def steered_by(controls):
    """While open, sessions get controls by the number of blocks that they have made, sent or called."""
    session_class, controls = RUNNER.LiveSession, dict(controls)

    class Steered(session_class):
        def _gate(self):
            made = self.engine.made
            for control in controls.pop(made, ()):
                control(self) if callable(control) else self.send(control)
            return super()._gate()

    RUNNER.LiveSession = Steered
    try:
        yield
    finally:
        RUNNER.LiveSession = session_class


@torch.inference_mode()
def live(controls=(), negative="", **changes):
    """One session, `steered_by` controls."""
    model, clip, vae = TINY.SaltLoadTiny.execute().args
    inputs = dict(prompt=PROMPT, negative_prompt=negative, seconds=0.0, width=64, height=64, pace="free") | WIDGETS
    with steered_by(controls):
        return model, LIVE.SaltLive.execute(
            model=model, clip=clip, vae=vae, filename_prefix="video/live", **inputs | changes
        ).args


def steered():
    """Prompts that keep, blend, recache and cut, a rewind; then the schedule by Salt Rollout, and the outputs."""
    folder, c = output_folder(), CONTROLS
    found = {}
    for name, policy in (("full", "full"), ("window", "sink:3,window:9")):
        controls = {
            1: [c.Prompt.of(OTHER, blocks=2)],
            4: [c.Prompt((c.WeightedPrompt(THIRD, 1.0), c.WeightedPrompt(PROMPT, 3.0)), "recache", True)],
            6: [c.Rewind(2.1)],
            7: [c.Prompt.of(THIRD, "recache")],
            8: [c.Prompt.of(PROMPT, "cut")],
            9: [c.Stop()],
        }
        kept = PACK.memory.MemoryPolicy.parse(policy)
        model, (video, latents, memory, prompts, report) = live(controls, policy=kept)
        frames = latents["samples"].shape[2]
        again, its_memory, _ = rollout(
            model, positive=None, prompts=prompts, policy=kept, seconds=(4 * frames - 3) / 16, seed=3
        )
        found[name] = {
            "frames": frames,
            "equal": torch.equal(again["samples"], latents["samples"]),
            "memory": [memory.memory.next_frame, memory.memory.held == its_memory.memory.held],
            "video": video.get_components().images.shape[0],
            "report": report.replace(str(folder), ""),
            "times": [p.seconds for p in prompts],
        }
    return found


def continued():
    """From a memory with its clip, from a picture: played again by Salt Rollout, which is given the same."""
    output_folder()
    c, kept = CONTROLS, PACK.memory.MemoryPolicy.parse("sink:3,window:9")
    tiny = TINY.SaltLoadTiny.execute().args
    first, memory, _ = rollout(tiny[0], seconds=1.3, seed=3, policy=kept)
    controls = {1: [c.Prompt.of(OTHER, "recache")], 3: [c.Rewind(1.6)], 4: [c.Prompt.of(THIRD)], 6: [c.Stop()]}
    model, (_, latents, later, prompts, report) = live(controls, memory=memory, latents=first)
    again, its_memory, _ = rollout(
        model, positive=None, prompts=prompts, memory=memory, latents=first, seconds=60 / 16, seed=3
    )
    found = {
        "memory": [memory.memory.next_frame, later.memory.next_frame, its_memory.memory.next_frame],
        "extension": torch.equal(again["samples"], latents["samples"]),
        "report": report.rpartition(": ")[2],
    }
    picture = torch.rand(1, 70, 80, 3, generator=torch.Generator().manual_seed(0))
    model, (_, latents, *_) = live(start_image=picture, seconds=1.5, stepping="ode")
    again = rollout(model, start_image=picture, vae=tiny[2], seconds=1.5, seed=3, stepping="ode")[0]
    error = (latents["samples"] - again["samples"]).norm() / again["samples"].norm()
    found["picture"] = [error.item() < 1e-4, latents["samples"].shape[2]]
    found["refused"] = {
        "policy": refusal(live, memory=memory, policy=PACK.memory.MemoryPolicy.parse("full")),
        "cfg": refusal(live, memory=memory, cfg=2.0),
        "both": refusal(live, memory=memory, start_image=picture),
        "latents": refusal(live, memory=memory, latents={"samples": first["samples"][..., :-2]}),
        "batch": refusal(live, latents={"samples": first["samples"].expand(2, -1, -1, -1, -1)}),
    }
    return found


def pictures():
    """Blocks from a video, over and over, whose strength is changed, and from a viewer's camera."""
    output_folder()
    c, vae = CONTROLS, TINY.SaltLoadTiny.execute().args[2]
    images = torch.rand(10, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    controls = {1: [c.Strength(0.0)], 2: [c.Strength(1.0)], 3: [c.Stop()]}
    _, (_, latents, *_, report) = live(controls, video=images, strength=0.0)
    _, (_, plain, *_) = live({3: [c.Stop()]})
    made, others = latents["samples"], plain["samples"]
    whole = vae.encode((images.repeat(3, 1, 1, 1)[:21] * 255).round() / 255)
    file = streams.BytesIO()
    Image.new("RGB", (64, 64), (40, 90, 200)).save(file, "JPEG")
    grey = torch.tensor([40, 90, 200]).div(255).expand(9, 64, 64, 3)
    unknown = []

    def word(session):
        unknown.append(refusal(session.send, c.Prompt.of("a red dragon")))

    controls = {0: [lambda session: session.picture(file.getvalue(), "one", 0.0), word], 1: [c.Stop()]}
    _, (_, seen, *_, said) = live(controls, strength=0.0)
    return {
        "video": error(made[:, :, :6], whole),
        "changed": error(made[:, :, 6:9], others[:, :, 6:9]),
        "report": report.rpartition("; ")[2],
        "camera": error(seen["samples"], vae.encode(grey)),
        "said": said.rpartition("; ")[2],
        "unknown": unknown,
        "bad": refusal(live, video=images, strength=1.5),
    }


def other_ends():
    """A length, guidance, changed settings, Cancel (playing and paused), refusals."""
    import comfy.model_management as management

    folder, c = output_folder(), CONTROLS
    model, (_, latents, *_, report) = live(seconds=2.0, cfg=2.0, negative=OTHER)
    again = rollout(model, seconds=2.0, seed=3, cfg=2.0, negative=text(OTHER))[0]["samples"]
    found = {
        "length": latents["samples"].shape[2],
        "guided": ((again - latents["samples"]).norm() / again.norm()).item(),
    }
    changed = live({1: [c.Seed(5), c.Nfe(4), c.Guidance(1.0)], 2: [c.Stop()]}, cfg=1.0)[1][4]
    found["changed"] = changed.rpartition("; ")[2]

    def press(_=None):
        management.interrupt_current_processing(True)

    def press_later(_):
        threading.Timer(1.0, press).start()

    for name, controls in (("paused", {2: [c.Pause(), press_later]}), ("playing", {3: [press]})):
        found[name] = refusal(live, controls, seconds=600.0).partition(":")[0]
        management.interrupt_current_processing(False)
    found["files"] = {name: counted(folder / name) > 0 for name in files(folder)}
    found["refused"] = {
        "word": refusal(live, prompt="a red dragon", seconds=1.0),
        "empty": refusal(live, prompt="", seconds=1.0),
        "size": refusal(live, width=72, seconds=1.0),
        "steps": refusal(live, nfe="custom", steps="500, 700", seconds=1.0),
    }
    found["left"] = len(files(folder)) == len(found["files"])
    return found


if __name__ == "__main__":
    run_case(steered, continued, pictures, other_ends)
