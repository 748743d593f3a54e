"""A real session behind a real server: random controls, hang-ups, reconnects and viewers that lag, all at once."""

import asyncio
import gc
import os
import random
import threading
import time
from contextlib import suppress

import aiohttp
import psutil
import pytest
import torch

from salt.live.pipeline_host import PipelineHost
from salt.live.replay import play, replay_engine
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from tests.helpers import tiny_system
from tests.helpers.live_server import served, viewer
from tests.live.test_replay import SHAPES

WORDS = ["red", "blue", "green", "circle", "square", "triangle", "moving", "left", "right", "up", "zebra"]


def random_message(chance, session):
    """A control as JSON, right or wrong, wherever the session is."""
    seconds = round(chance.uniform(0, session.state().seconds * 1.2), 3)
    text = f"a {chance.choice(WORDS[:3])} {chance.choice(WORDS[3:6])} moving {chance.choice(WORDS[7:])}"
    prompts = [{"text": text, "weight": chance.choice([1, 2.5, 0])} for _ in range(chance.choice([1, 1, 2]))]
    switch = chance.choice(["keep", "recache", "cut", "hop"])
    return chance.choice(
        [
            {"control": "prompt", "prompts": prompts, "switch": switch, "blend": {"blocks": chance.choice([0, 0, 2])}},
            {"control": "prompt", "prompts": prompts, "blend": {"block": 2}},
            {"control": "seed", "seed": chance.choice([1, 99, -1])},
            {"control": "nfe", "nfe": chance.choice([2, 2, 4, 3])},
            {"control": "guidance", "guidance": chance.choice([1.0, 1.0, 2.0, 1e9])},
            {"control": "policy", "policy": chance.choice(["window:9", "sink:3,window:9", "window:x"])},
            {"control": "bookmark", "name": "<b>here</b>"},
            {"control": chance.choice(["rewind", "fork"]), "seconds": seconds},
            {"control": "goto", "branch": chance.randint(1, 5)},
            {"control": "goto", "bookmark": chance.randint(1, 5)},
            {"control": chance.choice(["pause", "resume", "resume", "resume", "step"])},
            {"control": "pace", "pace": chance.choice(["free", "realtime", "fast"])},
        ]
    )


async def stay(address, session, id, chance, left):
    """One viewer's stay: it sends, lags or only watches, and leaves in one way or another."""
    kind = chance.choice(["steers", "steers", "steers", "lags", "stream", "aborts"])
    if kind == "stream":
        async with aiohttp.ClientSession() as client, client.get(f"{address}/api/{id}/stream.mp4") as response:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(response.content.readany(), 0.1)
        return
    async with viewer(address, id, after=chance.choice([None, 0, 3])) as one:
        await one.send(type="steer")
        if kind == "lags":
            await asyncio.sleep(chance.uniform(0, 0.3))
            return
        for _ in range(min(left[0], 20)):
            left[0] -= 1
            ref = left[0]
            message = random_message(chance, session)
            await one.send(type="control", ref=ref, **message)
            if chance.random() < 0.5:  # heard or refused, and whatever else comes before
                while not (isinstance(answer := await one.next(), dict) and answer.get("ref") == ref):
                    assert not isinstance(answer, dict) or answer["type"] != "bye", answer
            await asyncio.sleep(chance.uniform(0, 0.03))
        if kind == "aborts":
            one.socket._response.connection.transport.abort()


def counts():
    gc.collect()
    process = psutil.Process(os.getpid())
    return {"threads": threading.active_count(), "files": process.num_fds(), "tasks": len(asyncio.all_tasks())}


@pytest.mark.parametrize("controls", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_storm_of_controls_neither_locks_nor_leaks(tmp_path, controls):
    host = PipelineHost(tiny_system.pipeline())
    settings = LiveSettings(SHAPES[0], nfe=2, pace="free", policy="window:9", rewind_budget=2**22)
    session = LiveSession(host, settings, record=tmp_path / "clip.mp4" if controls > 100 else None)
    chance, left, resident = random.Random(controls), [controls], []

    async def run():
        async with served(session) as (address, id):
            async with viewer(address, id) as one:
                await one.frames()
            before = counts()
            while left[0] > 0:
                await asyncio.gather(*(stay(address, session, id, chance, left) for _ in range(4)))
                resident.append(psutil.Process().memory_info().rss)
            async with viewer(address, id) as one:  # it is still there, and obeys controls
                assert one.welcome["steering"], one.welcome
                for name, fields in (("pace", {"pace": "free"}), ("goto", {"branch": 1}), ("resume", {})):
                    await one.control(name, **fields)
                event = (await one.until("heard", ref=await one.control("seed", seed=1)))["event"]
                while (await one.frames()).event < event:
                    pass
            for _ in range(1000):
                found = counts()
                if not len(session.viewers) and all(found[name] <= before[name] + 3 for name in found):
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError((before, found, list(session.viewers)))

    threads = threading.active_count()
    asyncio.run(run())
    assert session.state().status == "stopped", session.state().message
    for _ in range(1000):  # threads end a moment after the session
        if threading.active_count() <= threads + 1:
            break
        time.sleep(0.01)
    else:
        raise AssertionError((threads, threading.enumerate()))
    if controls > 100:
        middle = resident[len(resident) // 2]
        assert max(resident[len(resident) // 2 :]) < 1.15 * middle, [size >> 20 for size in resident]
        replay = session.replay()
        again = replay_engine(host, replay)
        for _ in play(again, replay):
            pass
        assert torch.equal(session.engine.branch.tip.latents, again.branch.tip.latents)
