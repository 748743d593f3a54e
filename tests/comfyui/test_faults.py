"""What may go wrong on a real server: killed as it writes, the wrong memory, one memory for two, two hundred runs."""

from __future__ import annotations

import hashlib
import random
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from salt.comfy_client.client import ServerError
from salt.io.video import read_video
from salt.memory import load_memory
from tests.helpers.comfyui_server import LocalServer, make_bare_folder, make_base_folder, small, twin

MEMORY, LATENTS = "salt_tiny_clip_00001_.safetensors", "salt_tiny_clip_00001_.latent"
RUNS, WARM = 200, 40


@pytest.fixture
def base(tmp_path):
    return make_base_folder(tmp_path / "base")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = LocalServer(make_base_folder(tmp_path_factory.mktemp("base")))
    yield running
    running.stop()


def node(prompt, kind):
    """The number of the one node of a type."""
    (number,) = [n for n, about in prompt.items() if about["class_type"] == kind]
    return number


def without(prompt, *kinds):
    return {n: about for n, about in prompt.items() if about["class_type"] not in kinds}


def test_a_server_killed_while_it_writes_a_memory_leaves_the_old_one(base):
    server, folder = LocalServer(base), base / "output" / "salt_memories"
    server.run(small(twin("save_memory")))
    before = hashlib.sha256((folder / MEMORY).read_bytes()).hexdigest()
    large = without(twin("save_memory"), "SaveVideo", "SaltDecode", "SaveLatent", "SaltInspectMemory")
    large[node(large, "SaltRollout")]["inputs"] |= {"width": 256, "height": 256, "nfe": "2"}
    server.queue(large)
    until = time.monotonic() + 300
    while not (started := [p for p in folder.glob(".*.part") if p.stat().st_size]):
        assert time.monotonic() < until, server.log[-2000:]
        time.sleep(0.002)
    server.kill()
    assert started[0].exists(), "killed while it was being written"
    assert [path.name for path in folder.glob("*.safetensors")] == [MEMORY], "no half of a file under a file's name"
    assert hashlib.sha256((folder / MEMORY).read_bytes()).hexdigest() == before
    again = LocalServer(base)
    try:
        offered = again.node_info()["SaltLoadMemory"]["input"]["required"]["file"]
        listed = offered[0] if isinstance(offered[0], list) else offered[1]["options"]
        assert listed == ["newest", f"salt_memories/{MEMORY} [output]"]
        again.run(small(twin("extend_from_memory")))
    finally:
        again.stop()


@pytest.mark.slow
def test_servers_killed_at_random_moments_of_a_save_lose_nothing(base):
    folder, rng, before = base / "output" / "salt_memories", random.Random(6), {}
    large = without(twin("save_memory"), "SaveVideo", "SaltDecode", "SaveLatent", "SaltInspectMemory")
    large[node(large, "SaltRollout")]["inputs"] |= {"width": 128, "height": 128, "nfe": "2"}
    for _ in range(4):
        server, had = LocalServer(base), len(before)
        server.queue(large)
        until = time.monotonic() + 300
        while not list(folder.glob(".*.part")) and len(list(folder.glob("*.safetensors"))) == had:
            assert time.monotonic() < until, server.log[-2000:]
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        server.kill()
        now = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
        assert before.items() <= now.items()
        assert len({load_memory(path).next_frame for path in now}) <= 1, "each is read whole"
        before = now
    again = LocalServer(base)
    try:
        again.run(small(large))
        assert not list(folder.glob(".*")) and len(list(folder.iterdir())) == len(before) + 1
    finally:
        again.stop()


NEWEST = {
    "1": {"class_type": "SaltLoadMemory", "inputs": {"file": "newest"}},
    "2": {"class_type": "SaltInspectMemory", "inputs": {"memory": ["1", 0]}},
}


def test_the_newest_memory_is_read_again_when_there_is_a_newer_one(server):
    shutil.rmtree(server.base / "output" / "salt_memories", ignore_errors=True)
    with pytest.raises(ServerError, match=r"\(SaltLoadMemory\): file newest: found no memory in"):
        server.run(NEWEST)

    def cached():
        messages = server.run(NEWEST).status.messages
        return [number for event, about in messages if event == "execution_cached" for number in about["nodes"]]

    saving = without(small(twin("save_memory")), "SaveVideo", "SaltDecode", "SaveLatent", "SaltInspectMemory")
    server.run(saving)
    assert cached() == [] and sorted(cached()) == ["1", "2"]
    saving[node(saving, "SaltRollout")]["inputs"]["seed"] += 1
    server.run(saving)
    assert cached() == []


def test_a_prefix_elsewhere_is_refused_before_anything_runs(server):
    prompt = small(twin("save_memory"))
    prompt[node(prompt, "SaltSaveMemory")]["inputs"]["filename_prefix"] = "elsewhere/%date:yyyy%"
    with pytest.raises(ServerError, match="filename_prefix: found 'elsewhere/.*expected a name below salt_memories/"):
        server.run(prompt)
    assert not (server.base / "output" / "elsewhere").exists()


def test_a_memory_of_another_model_is_refused_by_name(server):
    server.run(small(twin("save_memory")))
    prompt = small(twin("extend_from_memory"))
    other = twin("salt_causal_forcing_4nfe")["1"]  # a student of another shape, with the same words
    prompt["99"] = other
    extend, load = node(prompt, "SaltExtendVideo"), node(prompt, "SaltLoadMemory")
    prompt[extend]["inputs"]["model"] = ["99", 0]
    prompt[load]["inputs"]["model"] = ["99", 0]
    with pytest.raises(ServerError, match=r"\(SaltLoadMemory\): .*the memory was written by another model"):
        server.run(prompt)
    del prompt[load]["inputs"]["model"]
    with pytest.raises(ServerError, match=r"\(SaltExtendVideo\): .*memory"):
        server.run(prompt)
    server.run(small(twin("extend_from_memory")))  # with its own model it goes on


def test_two_queued_runs_with_one_memory_give_the_same_clip(server):
    """Both continue from the memory on the first run's wire: the rollout behind it is run once."""
    prompt = without(small(twin("branch_memory")), "SaltDecode", "SaveVideo")
    first, second = [n for n, about in prompt.items() if about["class_type"] == "SaltExtendVideo"]
    del prompt[second]
    prompt["90"] = {"class_type": "SaveLatent", "inputs": {"samples": [first, 0], "filename_prefix": "latents/two"}}
    numbers = []
    for spelling in ("1000, 500", "1000,500"):  # of a list that is not used, so that the node is not taken from cache
        prompt[first]["inputs"]["steps"] = spelling
        numbers.append(server.queue(prompt))
    records = [server.wait_for(number) for number in numbers]
    cached = [details["nodes"] for event, details in records[1].status.messages if event == "execution_cached"]
    rollout = node(prompt, "SaltRollout")
    assert rollout in cached[0] and first not in cached[0]
    latents = [load_file(path)["latent_tensor"] for path in sorted((server.base / "output/latents").glob("two_*"))]
    assert len(latents) == 2 and latents[0].shape[2] == 15 and torch.equal(*latents)


def test_a_saved_memory_is_the_engines_own_format(server):
    server.run(small(twin("save_memory")))
    memory = load_memory(server.base / "output" / "salt_memories" / MEMORY)
    latents = load_file(server.base / "output" / "latents" / LATENTS)["latent_tensor"]
    assert memory.next_frame == latents.shape[2] == 9


@pytest.mark.slow
def test_two_hundred_queued_runs_leave_memory_flat(base):
    server = LocalServer(base)
    try:
        prompt = small(twin("tiny_text_to_video"), seconds=0.75)
        prompt[node(prompt, "SaltRollout")]["inputs"]["nfe"] = "2"
        resident = []
        numbers = []
        for seed in range(RUNS):
            prompt[node(prompt, "SaltRollout")]["inputs"]["seed"] = seed
            numbers.append(server.queue(prompt))
        for number in numbers:
            server.wait_for(number)
            resident.append(server.rss)
        early, late = sum(resident[WARM : WARM + 10]) / 10, sum(resident[-10:]) / 10
        print(f"RSS after {WARM} runs {early / 2**20:.0f} MiB, after {RUNS} runs {late / 2**20:.0f} MiB")
        assert len(list((base / "output" / "salt").glob("*.mp4"))) == RUNS
        assert abs(late / early - 1) <= 0.05
    finally:
        server.stop()


@pytest.mark.slow
def test_a_server_killed_during_a_rollout_to_video_leaves_a_file_that_plays(tmp_path):
    base, chance, clips = make_bare_folder(tmp_path / "base"), random.Random(23), {}
    endless = twin("rollout_to_video")
    endless[node(endless, "SaltRolloutToVideo")]["inputs"] |= {"seconds": 3600.0}
    for _ in range(5):
        server = LocalServer(base)
        server.queue(endless)
        until = time.monotonic() + 120
        while not (made := [p for p in set(base.glob("output/video/*.mp4")) - clips.keys() if p.stat().st_size]):
            assert time.monotonic() < until and server.process.poll() is None, server.log[-2000:]
            time.sleep(0.01)
        time.sleep(chance.uniform(1, 4))  # several blocks
        server.kill()
        (path,) = made
        clips[path] = read_video(path)
        print(f"{path.name}: {path.stat().st_size} bytes, {clips[path].shape[2]} frames")
    whole = max(clips.values(), key=lambda clip_BCTHW: clip_BCTHW.shape[2])
    for clip_BCTHW in clips.values():
        frames = clip_BCTHW.shape[2] - 1  # the last one may be half written
        assert frames >= 20 and torch.equal(clip_BCTHW[:, :, :frames], whole[:, :, :frames]), "the same clip, cut short"
