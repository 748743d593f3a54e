"""Rollouts that are written to a file while they run, ended early, and gone on with after a change."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from .session import FOLDER, PACK, run_case
from .tiny_model import OTHER, PROMPT, WIDGETS, extend, part, refusal, rollout, text, tiny

VIDEO, DECODE, TINY = part("nodes.live.nodes_rollout_to_video"), part("nodes.nodes_decode"), part("nodes.nodes_tiny")
RUNNING, KEPT, FILE = (
    part("nodes.adapter.running"), part("nodes.adapter.kept_runs"), part("salt.io.fragmented_file").FragmentedFile
)  # fmt: skip
THIRD = "a fast green triangle moving left"


def as_node(node: str = "7"):
    from comfy_execution.utils import CurrentNodeContext

    return CurrentNodeContext("prompt", node)


def output_folder() -> Path:
    import folder_paths

    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    folder_paths.set_output_directory(str(folder))
    return folder


@torch.inference_mode()
def to_video(model, vae, **changes):
    inputs = dict(positive=text(PROMPT), seconds=2.0, width=64, height=64, filename_prefix="video/clip") | WIDGETS
    return VIDEO.SaltRolloutToVideo.execute(model=model, vae=vae, **inputs | changes).args


class Writes:
    """While open: the frames of every block that goes into a file. then: called after each with their number."""

    def __init__(self, then=lambda count: None):
        self.blocks, self.then, self.write = [], then, FILE.write

    def __enter__(self):
        def write(file, frames):
            self.write(file, frames)
            self.blocks.append(torch.from_numpy(frames))
            self.then(len(self.blocks))

        FILE.write = write
        return self

    def __exit__(self, *_):
        FILE.write = self.write

    @property
    def frames(self):
        return torch.cat(self.blocks)


@torch.inference_mode()
def decoded(latents, vae):
    images = DECODE.SaltDecode.execute(latents, vae, 16.0).args[0]
    return (images * 255).round().to(torch.uint8)


def counted(path) -> int:
    import imageio_ffmpeg

    return imageio_ffmpeg.count_frames_and_secs(str(path))[0]


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def video():
    """Frames beside Salt Decode's of Salt Rollout's latents: a new clip, one that goes on, one with a start image."""
    folder = output_folder()
    model, _, vae = TINY.SaltLoadTiny.execute().args
    latents, memory, _ = rollout(model)
    with Writes() as written:
        out, its_memory, report = to_video(model, vae)
    longer, *_ = extend(model, memory, latents)
    whole = decoded(longer, vae)
    with Writes() as more:
        to_video(model, vae, memory=memory, latents=latents)
    with Writes() as alone:
        to_video(model, vae, memory=memory)
    new = {"samples": longer["samples"][:, :, latents["samples"].shape[2] :]}
    image = torch.linspace(0, 1, 64 * 64 * 3).view(1, 64, 64, 3)
    started = rollout(model, vae=vae, start_image=image)[0]
    with Writes() as begun:
        to_video(model, vae, start_image=image)
    return {
        "equal": torch.equal(written.frames, decoded(latents, vae)),
        "memory": torch.equal(its_memory.memory.store.buffers[0][0], memory.memory.store.buffers[0][0]),
        "video": [out.get_components().images.shape[0], out.get_dimensions()],
        "goes on": (more.frames.int() - whole[-len(more.frames) :].int()).abs().max().item(),
        "more": len(more.frames),
        "alone": torch.equal(alone.frames, decoded(new, vae)),
        "started": torch.equal(begun.frames, decoded(started, vae)),
        "files": files(folder),
        "report": report.replace(str(folder), ""),
        "blocks": [len(block) for block in written.blocks],
    }


def ended_early():
    """Cancel and Stop and keep of a clip that goes into a file; what is refused."""
    import comfy.model_management as management

    folder = output_folder()
    model, _, vae = TINY.SaltLoadTiny.execute().args
    short, its_memory, _ = rollout(model, seconds=1.3)

    def press(count):
        if count == 2:
            management.interrupt_current_processing(True)

    with Writes(press):
        cancelled = refusal(to_video, model, vae, seconds=60.0)
    left = {name: counted(folder / name) for name in files(folder)}
    stopped = []
    with as_node(), Writes(lambda count: count == 2 and stopped.append(RUNNING.stop_node("7"))) as written:
        _, memory, report = to_video(model, vae, seconds=60.0)
    with as_node():
        refused = {
            "vae": refusal(to_video, model, None),
            "batch": refusal(to_video, model, vae, latents={"samples": short["samples"].repeat(2, 1, 1, 1, 1)}),
            "size": refusal(to_video, model, vae, width=72),
        }
    return {
        "cancelled": cancelled.partition(":")[0],
        "left": left,
        "stopped": stopped,
        "report": report.rpartition("; ")[2],
        "frames": torch.equal(written.frames, decoded(short, vae)),
        "memory": [memory.memory.next_frame, its_memory.memory.next_frame],
        "idle": [RUNNING.running_nodes(), RUNNING.stop_node("7")],
        "refused": refused,
        "prefixes": {
            prefix: VIDEO.SaltRolloutToVideo.validate_inputs(prefix, 1.0, vae=None, positive=None)
            for prefix in ("video/clip", "../clip", "/etc/clip", "", "a/.hidden", "video/", "x" * 300)
        },
        "files": files(folder),
    }


class Stops:
    """While open: node 7 is asked to stop when it has finished its `at`th block."""

    def __init__(self, at: int):
        self.at, self.kind = at, part("nodes.adapter.block_outputs").KeptLatents

    def __enter__(self):
        put = self.put = self.kind.put

        def counting(output, latents):
            put(output, latents)
            if len(output.parts) == self.at:
                RUNNING.stop_node("7")

        self.kind.put = counting

    def __exit__(self, *_):
        self.kind.put = self.put


def stopped():
    """Stop and keep: what there is equals the shorter clip, goes on as it would have, and so does a longer run."""
    model = tiny()
    whole, *_ = rollout(model, seconds=3.0)
    short, short_memory, _ = rollout(model, seconds=1.3)
    with as_node(), Stops(2):
        latents, memory, report = rollout(model, seconds=3.0)
    with as_node("8"):
        rest = extend(model, memory, latents, seconds=0.7)[0]
    with as_node(), Stops(4):  # the clip so far, and three new blocks
        extended, _, extended_report = extend(model, short_memory, short, seconds=30.0)
    with as_node():
        KEPT._runs.clear()
        with Stops(2):
            rollout(model, seconds=3.0)
        again, _, again_report = rollout(model, seconds=3.0)
    return {
        "equal": torch.equal(latents["samples"], short["samples"]),
        "report": report.split("; ")[1:],
        "memory": memory.memory.next_frame,
        "goes on": torch.equal(rest["samples"], extend(model, short_memory, short, seconds=0.7)[0]["samples"]),
        "extended": [extended["samples"].shape[2], extended_report.split("; ")[1:]],
        "again": [torch.equal(again["samples"], whole["samples"]), again_report.split("; ")[1:]],
    }


def schedule(*lines):
    TimedConditioning = part("nodes.io_types").TimedConditioning
    return [TimedConditioning(seconds, text(prompt), switch) for seconds, prompt, switch in lines]


FIRST = (0.0, PROMPT, "keep"), (0.75, OTHER, "recache"), (1.5, THIRD, "cut"), (2.25, OTHER, "keep")
CHANGES = {
    "last prompt": dict(prompts=(*FIRST[:3], (2.25, PROMPT, "keep"))),
    "its switch": dict(prompts=(*FIRST[:3], (2.25, OTHER, "recache"))),
    "its time": dict(prompts=(*FIRST[:3], (1.8, OTHER, "keep"))),
    "one before": dict(prompts=(*FIRST[:2], (1.5, PROMPT, "recache"), FIRST[3])),
    "one is gone": dict(prompts=(FIRST[0], FIRST[1], FIRST[3])),
    "longer": dict(seconds=4.5),
    "shorter": dict(seconds=1.3),
    "nothing": dict(),
    "first prompt": dict(prompts=((0.0, THIRD, "keep"), *FIRST[1:])),
    "seed": dict(seed=5),
    "nfe": dict(nfe="4"),
    "shift": dict(shift=2.0),
    "stepping": dict(stepping="ode"),
    "size": dict(width=96),
    "batch": dict(batch_size=2),
    "policy": dict(policy="window:9"),
}
POLICIES = ("full", "window:6", "sink:3,window:6", "relative:3,window:6", "blended:3,window:6", "window:6,int8")


def run_of(model, node, policy="full", prompts=FIRST, seconds=3.0, **changes):
    policy = None if policy is None else PACK.memory.MemoryPolicy.parse(policy)
    with as_node(node):
        latents, memory, report = rollout(
            model, positive=None, prompts=schedule(*prompts), policy=policy, seconds=seconds, **changes
        )
    return (
        latents["samples"],
        memory.memory,
        next((r for r in report.split("; ") if "went on" in r), "").removeprefix("went on from the run before at "),
    )


def equal_memories(a, b) -> bool:
    rows = [
        [buffer[:, m.slot_index(m.held)] for layer in m.store.buffers for buffer in layer] for m in (a, b)
    ]  # fmt: skip
    return a.held == b.held and a.next_frame == b.next_frame and all(map(torch.equal, *rows))


@torch.inference_mode()
def resumed():
    """A run after a change, beside one from the beginning: whether latents and memory are equal, and its report."""
    model, found = tiny(), {}
    wanted = {name: run_of(model, "", **change) for name, change in CHANGES.items()}
    for name, change in CHANGES.items():
        run_of(model, "7")
        latents, memory, report = run_of(model, "7", **change)
        expected = wanted[name]
        found[name] = [torch.equal(latents, expected[0]), equal_memories(memory, expected[1]), report]
    for policy in POLICIES[1:]:
        KEPT._runs.clear()
        run_of(model, "7", policy=policy)
        latents, memory, report = run_of(model, "7", policy=policy, **CHANGES["one before"])
        expected = run_of(model, "", policy=policy, **CHANGES["one before"])
        found[policy] = [torch.equal(latents, expected[0]), equal_memories(memory, expected[1]), report]
    return found


@torch.inference_mode()
def resumed_further():
    """Guidance, extensions and starts; another MODEL and another node; small budgets."""
    model, found = tiny(), {}
    options = dict(cfg=2.0, negative=text(THIRD), **CHANGES["last prompt"])
    first = dict(options, prompts=FIRST)
    run_of(model, "7", **first)
    latents, _, report = run_of(model, "7", **options)
    found["guided"] = [torch.equal(latents, run_of(model, "", **options)[0]), report]
    clip, memory, _ = rollout(model)
    both = dict(memory=memory, latents=clip, prompts=((0.0, PROMPT, "keep"), (3.0, OTHER, "recache")), seconds=3.0)
    both["policy"] = None
    other = dict(both, prompts=((0.0, PROMPT, "keep"), (3.0, THIRD, "recache")))
    run_of(model, "7", **both)
    latents, _, report = run_of(model, "7", **other)
    found["extension"] = [torch.equal(latents, run_of(model, "", **other)[0]), report]
    start = dict(latents={"samples": clip["samples"][:, :, :4]})
    run_of(model, "7", **start)
    latents, _, report = run_of(model, "7", **start, **CHANGES["last prompt"])
    found["start"] = [torch.equal(latents, run_of(model, "", **start, **CHANGES["last prompt"])[0]), report]
    run_of(model, "7")
    found["other node"] = run_of(model, "8", **CHANGES["last prompt"])[2]
    found["other model"] = run_of(tiny(), "7", **CHANGES["last prompt"])[2]
    found["runs"] = len(KEPT._runs[model])
    KEPT._runs.clear()
    KEPT.MAX_SNAPSHOT_BYTES = 1  # nothing but the first, which is empty
    run_of(model, "7")
    latents, _, report = run_of(model, "7", **CHANGES["last prompt"])
    found["no snapshots"] = [torch.equal(latents, run_of(model, "", **CHANGES["last prompt"])[0]), report]
    KEPT._runs.clear()
    KEPT.MAX_LATENT_BYTES = 1
    run_of(model, "7")
    found["no latents"] = run_of(model, "7", **CHANGES["last prompt"])[2]
    return found


if __name__ == "__main__":
    run_case(video, ended_early, stopped, resumed, resumed_further)
