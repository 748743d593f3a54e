"""What a hostile client sends is refused or harmless, and the session makes its next block for the others."""

import asyncio
import json
import os
from contextlib import asynccontextmanager, suppress

import aiohttp
import psutil
import pytest

from salt.live.server.security import MAX_MESSAGE_BYTES, MESSAGES_PER_SECOND, RateLimit
from tests.helpers.fake_live_session import FakeSession
from tests.helpers.live_server import served, viewer


@asynccontextmanager
async def watched():
    """(address, id, session) of a session that is watched, and steered, by someone else, before and after."""
    session = FakeSession()
    async with served(session) as (address, id), viewer(address, id) as watcher:
        await watcher.frames()
        yield address, id, session
        made = session.block
        while (await watcher.frames()).block <= made:
            pass
        await watcher.until("heard", ref=await watcher.control("seed", seed=1))


async def upgraded(address, id):
    """(reader, writer) of a websocket that is written byte by byte, after its `hello`."""
    host, port = address.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /salt/live/ws?session={id} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    hello = b'{"type":"hello"}'
    writer.write(bytes([0x81, 0x80 | len(hello), 0, 0, 0, 0]) + hello)
    return reader, writer


async def take_all(reader):
    with suppress(ConnectionError):
        while await reader.read(2**16):
            pass


@pytest.mark.parametrize("fragmented", [False, True], ids=["one frame", "many frames"])
def test_a_message_of_a_gigabyte_is_refused_before_it_is_read(fragmented):
    async def run():
        async with watched() as (address, id, session):
            reader, writer = await upgraded(address, id)
            reading = asyncio.create_task(take_all(reader))
            process = psutil.Process(os.getpid())
            before, sent, piece = process.memory_info().rss, 0, bytes(2**20)
            with pytest.raises(ConnectionError):
                if not fragmented:
                    writer.write(bytes([0x81, 0xFF]) + (2**30).to_bytes(8, "big") + bytes(4))
                first = 0x01
                while sent < 2**30:
                    if fragmented:
                        writer.write(bytes([first, 0xFE]) + (2**15).to_bytes(2, "big") + bytes(4) + piece[: 2**15])
                        sent, first = sent + 2**15, 0x00
                    else:
                        writer.write(piece)
                        sent += len(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
            assert sent < 2**26 and process.memory_info().rss - before < 2**26
            writer.close()
            await reading

    asyncio.run(run())


def test_ten_thousand_messages_a_second_end_the_connection():
    async def run():
        async with watched() as (address, id, session), viewer(address, id) as flood:
            with pytest.raises(ConnectionError):
                for n in range(10_000):
                    await flood.send(type="ping", t=n)
                while True:
                    await flood.next()
            assert flood.socket.close_code in (1006, aiohttp.WSCloseCode.POLICY_VIOLATION)
            assert session.sent == []

    asyncio.run(run())


def test_the_rate_that_is_allowed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rate = RateLimit()
    assert [rate.allows_one_more() for _ in range(MESSAGES_PER_SECOND + 1)] == [True] * MESSAGES_PER_SECOND + [False]
    now[0] += 2.5 / MESSAGES_PER_SECOND
    assert [rate.allows_one_more() for _ in range(3)] == [True, True, False]
    now[0] += 1e9
    assert sum(rate.allows_one_more() for _ in range(1000)) == MESSAGES_PER_SECOND


CONTROL = {"type": "control", "ref": 7, "control": "seed"}
REFUSED = [
    ("{", "no valid JSON"),
    ("", "no valid JSON"),
    ("[]", "expected a JSON object"),
    ("null", "expected a JSON object"),
    ('"text"', "expected a JSON object"),
    ("[" * 60_000, "nested too deeply"),
    ('{"type":' * 8_000, "nested too deeply"),
    ('{"type":"ping","t":' + "[" * 20 + "]" * 20 + "}", "nested too deeply"),
    ('{"type":"ping","t":' + "9" * 5_000 + "}", "no valid JSON"),
    ('{"type":"ping","t":1e400}', "t: found inf"),
    ('{"type":"ping","t":NaN}', "t: found nan"),
    ('{"type":"ping","t":-Infinity}', "t: found -inf"),
    ('{"type":"ping"}', "'t'"),
    ('{"type":"ping","t":true}', "t: found True"),
    ('{"type":"played","frame":-1}', "frame: found -1"),
    ('{"type":"played","frame":1.5}', "frame: found 1.5"),
    ('{"type":"played","frame":1e99}', "frame: found 1e+99"),
    ('{"type":"played","frame":NaN}', "frame: found nan"),
    ('{"type":"hello","after":"x"}', "after: found 'x'"),
    ('{"type":"hello"}', "second `hello`"),
    ('{"type":"steer","viewer":"other"}', "steer: found 'viewer', expected no fields"),
    ('{"type":"__class__"}', "type: found '__class__'"),
    ('{"type":["control"]}', "type: found ['control']"),
    ('{"type":{}}', "type: found {}"),
    ("{}", "type: found None"),
    (json.dumps({**CONTROL, "ref": -1}), "ref: found -1"),
    (json.dumps({**CONTROL, "ref": "<b>"}), "ref: found '<b>'"),
    (json.dumps({**CONTROL, "ref": 10**400}), "ref: found 1"),
    (json.dumps({**CONTROL, "control": None}), "control: found None"),
    (json.dumps({**CONTROL, "seed": "\ud800"}), "whole characters"),
    (json.dumps({**CONTROL, "\udfff": 1}), "whole characters"),
]


def test_messages_that_are_none_are_refused():
    async def run():
        async with watched() as (address, id, session), viewer(address, id) as hostile:
            for text, problem in REFUSED:
                await hostile.socket.send_str(text)
                refusal = await hostile.until("refused")
                assert problem in refusal["message"] and len(refusal["message"]) <= 400, text[:80]
                assert refusal["ref"] == (7 if '"ref": 7' in text else None)
                await asyncio.sleep(1 / MESSAGES_PER_SECOND if len(text) > 10**4 else 0)
            await hostile.socket.send_bytes(b"SLF1")
            assert "binary" in (await hostile.until("refused"))["message"]
            assert session.sent == []

    asyncio.run(run())


@pytest.mark.parametrize(
    "values",
    [
        {"control": "no such"},
        {"control": "__init__"},
        {"control": "seed"},
        {"control": "seed", "seed": "x"},
        {"control": "seed", "seed": 1.5},
        {"control": "seed", "seed": float("nan")},
        {"control": "prompt", "prompts": "text"},
        {"control": "prompt", "prompts": [{"text": "x" * 5_000, "weight": 1}]},
    ],
)
def test_controls_that_are_none_are_refused(values):
    async def run():
        session = FakeSession()
        async with served(session) as (address, id), viewer(address, id) as one:
            await one.send(type="control", ref=9, **values)
            refusal = await one.until("refused", ref=9)
            assert refusal["field"] and len(refusal["message"]) <= 400
            assert session.sent == []
            await one.frames()

    asyncio.run(run())


def test_a_prompt_of_a_megabyte_ends_the_connection():
    async def run():
        async with watched() as (address, id, session), viewer(address, id) as hostile:
            await hostile.control("prompt", prompts=[{"text": "x" * 2**20, "weight": 1}])
            assert await hostile.closed() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
            assert session.sent == []

    asyncio.run(run())


def test_html_in_a_prompt_stays_text():
    html = "<script>alert(1)</script><img src=x onerror=alert(2)>"

    async def run():
        session = FakeSession()
        async with served(session) as (address, id), viewer(address, id) as one:
            ref = await one.control("prompt", prompts=[{"text": html, "weight": 1}])
            await one.until("heard", ref=ref)
            await one.until("applied")
            async with aiohttp.ClientSession() as client, client.get(f"{address}/api/{id}/state") as response:
                assert response.content_type == "application/json"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert (await response.json())["prompts"][0]["text"] == html
            await one.frames()

    asyncio.run(run())


@pytest.mark.parametrize(
    "first", ['{"type": "steer"}', "{", json.dumps({**CONTROL, "seed": 1}), "x" * MAX_MESSAGE_BYTES]
)
def test_nothing_happens_before_hello(first):
    async def run():
        async with watched() as (address, id, session), aiohttp.ClientSession() as client:
            async with client.ws_connect(f"{address}/ws?session={id}") as socket:
                await socket.send_str(first)
                while (await socket.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                    pass
                assert socket.close_code in (1008, 1009)
            assert session.sent == [] and len(session.viewers) == 1

    asyncio.run(run())
