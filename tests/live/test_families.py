"""Every family and every memory in a live session: equal to the offline clip; rewound, forked and replayed exactly."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from salt.cli.live_start import start_of_image
from salt.errors import InputError
from salt.io.video import VideoWriter
from salt.live.controls import Fork, Goto, Guidance, Nfe, Policy, Prompt, Seed
from salt.live.engine import LiveEngine
from salt.live.pipeline_host import PipelineHost
from salt.live.replay import parse_replay, play, replay_engine, replay_of
from salt.live.settings import LiveSettings
from salt.live.start import LiveStart
from salt.live.video_feed import FilePictures
from tests.helpers.families import BLUE, FAMILIES, RED, SIDES, pipeline
from tests.live.test_exact import play as run
from tests.live.test_exact import same

MEMORIES = {
    "self forcing": ("full", "overwrite:3,window:6", "rebuild:3", "rebuild:6,keep", "shots:3,window:9,offset:4"),
    "causal forcing": (None,),
    "krea": (None,),
    "streamdiffusion2": (None, "overwrite:2,window:5", "window:6"),
    "longlive2": (None, "shots:8,window:32,offset:8,clean"),
    "anyflow": (None, "far:1"),
}
CASES = [(family, policy) for family, policies in MEMORIES.items() for policy in policies]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    made = {}

    def host(family):
        if family == "anyflow" and not hasattr(diffusers, "AnyFlowFARPipeline"):
            pytest.skip("diffusers has no AnyFlow-FAR")
        if family not in made:
            made[family] = PipelineHost(
                pipeline(family, tmp_path_factory.mktemp("family")), SIDES[family], SIDES[family]
            )
        return made[family]

    return host


def moment(engine, blocks):
    """Just after the branch's first `blocks` blocks."""
    stop = next(b.stop for b in engine.branches[1].tip.back() if b.index == blocks - 1)
    return engine.info.first_pixel_frame(stop) / engine.info.fps + 0.01


@pytest.mark.parametrize(("family", "policy"), CASES)
def test_what_follows_a_rewind_or_fork_is_exact_and_replayed(hosts, family, policy):
    """From a snapshot (after 4 blocks) and from the beginning, across a prompt change, guidance and other steps."""
    host, shots = hosts(family), "shots" in (policy or family) or family == "longlive2"
    settings = LiveSettings(RED, BLUE, policy=policy, pace="free")
    change = Prompt.of(BLUE, "shot" if shots else "keep")
    before = {1: [change], 2: [Guidance(2.0), Nfe(2)], 3: [Guidance(1.0)]}
    straight, _ = run(LiveEngine(host, settings, False), 8, {**before, 6: [Nfe(4)]})
    engine = LiveEngine(host, settings, False)
    made, _ = run(engine, 7, {**before, 5: [Prompt.of(RED, "cut"), Seed(9)]})
    assert same(made[:5], straight[:5]) and not torch.equal(made[5], straight[5])
    forked, _ = run(engine, 3, {0: [Fork(moment(engine, 5))], 1: [Nfe(4)]})
    assert same(forked, straight[5:])
    back, _ = run(engine, 3, {0: [Goto(branch=1, seconds=moment(engine, 3)), Guidance(1.0)]})
    assert same(back, straight[3:6])
    replay = parse_replay(json.loads(replay_of(engine).to_json()))
    again = [block.latents for block in play(replay_engine(host, replay), replay)]
    assert same(again, [*made, *forked, *back])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_is_the_clip_that_the_pipeline_makes(hosts, family):
    host = hosts(family)
    switch = "shot" if family == "longlive2" else "keep"
    engine = LiveEngine(host, LiveSettings(RED, seed=3, pace="free"), False)
    made, _ = run(engine, 3, {1: [Prompt.of(BLUE, switch)]})
    clip, info = torch.cat(made, dim=2), host.info
    seconds = info.first_pixel_frame(made[0].shape[2]) / info.fps
    offline = host.pipe(
        RED, prompt_schedule=[(seconds, BLUE, switch)], num_frames=info.first_pixel_frame(clip.shape[2]), seed=3,
        output_type="latent", height=info.height, width=info.width,
    )  # fmt: skip
    assert torch.equal(clip, offline.latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_from_a_picture_or_memory_is_the_pipeline_s_clip(hosts, family, tmp_path):
    """Also after it was rewound to its beginning."""
    host, file = hosts(family), tmp_path / "start.png"
    size = {"height": host.info.height, "width": host.info.width}
    Image.new("RGB", (host.info.width, host.info.height), (200, 30, 90)).save(file)
    frames, blocks = {"krea": (9, 3), "longlive2": (16, 2), "streamdiffusion2": (3, 3), "causal forcing": (4, 4)}.get(
        family, (4, 2)
    )
    made = host.pipe(RED, image=file, num_frames=4 * frames - 3, seed=3, output_type="latent", **size)
    engine = LiveEngine(host, LiveSettings(RED, seed=3, pace="free"), False, start_of_image(host, file, None))
    for _ in range(2):
        found, _ = run(engine, blocks, {0: [Fork(0.0)]})
        assert torch.equal(torch.cat(found, dim=2), made.latents)
    start = LiveStart(memory=made.memory.fork(), history=made.latents)
    extended = LiveEngine(host, LiveSettings(RED, seed=4, pace="free"), False, start)
    first, _ = run(extended, 6)
    again, _ = run(extended, 2, {0: [Fork(0.0)]})
    count = sum(x.shape[2] for x in first)
    offline = host.pipe(
        RED,
        memory=made.memory,
        history_latents=made.latents,
        num_frames=4 * count,
        seed=4,
        output_type="latent",
        **size,
    )
    assert torch.equal(torch.cat(first, dim=2), offline.latents) and same(again, first[:2])
    replay = replay_of(extended)
    again = [block.latents for block in play(replay_engine(host, replay, start=start), replay)]
    assert same(again, [*first, *first[:2]])


def test_pictures_are_denoised_again_for_a_memory_that_its_last_step_writes(hosts, tmp_path):
    """Their noise follows motion, so a rewind needs what the blocks began with; and the clip is the pipeline's."""
    host, file = hosts("streamdiffusion2"), tmp_path / "in.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (29, 32, 32, 3), dtype=np.uint8)
    with VideoWriter(file, 16) as video:
        video.write(torch.from_numpy(frames))
    settings = LiveSettings(RED, seed=3, strength=0.8, pace="free")

    def engine():
        return LiveEngine(host, settings, False, feed=host.new_feed(FilePictures(file)))

    def kept(engine):
        memory = engine.memories.memory
        return [*(b for layer in memory.store.buffers for b in layer), memory.overwritten, memory.held]

    straight, further = engine(), engine()
    made, _ = run(straight, 3)
    offline = host.pipe(RED, video=file, strength=0.8, num_frames=13, seed=3, output_type="latent")
    assert torch.equal(torch.cat(made, dim=2), offline.latents)
    straight.take_snapshot()
    run(further, 6)
    further.apply(Fork(moment(further, 3)))
    further.rebuild()
    for a, b in zip(kept(further), kept(straight), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_what_a_family_cannot_follow_is_refused(hosts):
    far, wan = (LiveEngine(hosts(f), LiveSettings(RED, pace="free"), False) for f in ("anyflow", "self forcing"))
    refused = [
        (
            far,
            Prompt.of(BLUE, "recache"),
            "switch: found recache, expected keep or cut: a memory of far:2 is written once",
        ),
        (far, Policy("window:6"), "memory_policy: found window:6, expected far:2, the memory that AnyFlow-FAR"),
        (wan, Policy("far:2"), "memory_policy: found far:2, which only AnyFlow-FAR has an embedding for"),
        (wan, Prompt.of(BLUE, "shot"), "switch: found shot with the memory full, expected one as shots:8"),
    ]
    for engine, control, message in refused:
        with pytest.raises(InputError) as error:
            engine.apply(control)
        assert message in str(error.value)
    run(far, 2, {1: [Policy("far:1"), Guidance(2.0)]})
    rewound = hosts("krea").pipe(RED, num_frames=21, seed=1, output_type="latent").memory
    rewound.trim(3)
    with pytest.raises(InputError, match="memory was rewound, and rebuild:3 is rebuilt from the clip's latents"):
        LiveEngine(hosts("krea"), LiveSettings(RED), False, LiveStart(memory=rewound))
