"""Viewers that come, steer, lag and go at random leave no task, thread, socket or viewer behind."""

import asyncio
import gc
import os
import random
import threading

import aiohttp
import psutil
import pytest

from tests.helpers.fake_live_session import FakeSession
from tests.helpers.live_server import served, viewer

CONTROLS = [
    {"control": "prompt", "prompts": [{"text": "a blue square"}]},
    {"control": "prompt", "prompts": [{"text": "a"}, {"text": "b", "weight": 3}], "blend": {"blocks": 2}},
    {"control": "seed", "seed": 7},
    {"control": "nfe", "nfe": 2},
    {"control": "bookmark", "name": "here"},
    {"control": "rewind", "seconds": 0.5},
    {"control": "fork", "seconds": 0.5},
    {"control": "goto", "bookmark": 1},
    {"control": "pause"},
    {"control": "step"},
    {"control": "resume"},
    {"control": "guidance", "guidance": 99999},
    {"control": "none"},
]


async def visit(address, id, chance):
    """One viewer's random stay."""
    kind = chance.choice(["polite", "polite", "cut off", "silent", "lagging", "stream", "thumbnail"])
    if kind in ("stream", "thumbnail"):
        name = "stream.mp4" if kind == "stream" else "thumbnail?branch=0&frame=0"
        async with aiohttp.ClientSession() as client, client.get(f"{address}/api/{id}/{name}") as response:
            await asyncio.wait([asyncio.create_task(response.content.readany())], timeout=0.05)
        return
    if kind == "silent":
        async with aiohttp.ClientSession() as client, client.ws_connect(f"{address}/ws?session={id}"):
            return
    async with viewer(address, id, after=chance.choice([None, 0, 3])) as one:
        if kind == "lagging":
            await asyncio.sleep(0.05)
        for _ in range(chance.randint(0, 3)):
            await one.send(**chance.choice([{"type": "steer"}, {"type": "release"}, {"type": "played", "frame": 3}]))
            await one.send(type="control", ref=1, **chance.choice(CONTROLS))
        await one.next()
        if kind == "cut off":
            one.socket._response.connection.transport.abort()


def counts():
    gc.collect()
    process = psutil.Process(os.getpid())
    return {"threads": threading.active_count(), "files": process.num_fds(), "tasks": len(asyncio.all_tasks())}


async def settled(session, limits):
    """Waits until all that was left is gone; connections take a moment to end."""
    for _ in range(1000):
        if not len(session.viewers) and all(found <= limits[name] for name, found in counts().items()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError((list(session.viewers), counts(), limits, asyncio.all_tasks()))


@pytest.mark.parametrize("visits", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_left_behind(visits):
    async def run():
        session, chance = FakeSession(0.02), random.Random(visits)
        async with served(session) as (address, id):
            async with viewer(address, id) as one:
                await one.frames()  # whatever is made once is made
            await settled(session, {"threads": 99, "files": 999, "tasks": 3})
            before = counts()
            for _ in range(visits // 5):
                await asyncio.gather(*(visit(address, id, chance) for _ in range(5)))
            await settled(session, {**before, "threads": before["threads"] + 1})
            async with viewer(address, id) as one:
                assert one.welcome["steering"] and one.welcome["state"]["viewers"] == 1
                await one.control("resume")
                await one.frames()

    asyncio.run(run())
