"""Viewers of a served session: frames, receipts, reconnecting, steering, slow viewers."""

import asyncio
import io

import aiohttp
import pytest
from imageio_ffmpeg import count_frames_and_secs
from PIL import Image

from salt.live.messages import Superseded
from salt.live.recording import RecordedBranch
from salt.live.server.hosted import LiveRegistry, SteeringRight
from salt.live.viewers import MAX_RECEIPTS
from tests.helpers.fake_live_session import FakeSession
from tests.helpers.live_server import served, viewer


def test_a_viewer_gets_pictures_and_receipts():
    async def run():
        session = FakeSession()
        async with served(session) as (address, id), viewer(address, id) as one:
            assert one.welcome["session"] == id and one.welcome["steering"] and one.welcome["format"] == "jpeg"
            assert one.welcome["fps"] == 16 and one.welcome["state"]["viewers"] == 1
            frames = await one.frames()
            assert len(frames.pictures) == 12 and frames.format == 1 and frames.play_index == 12 * frames.block
            assert Image.open(io.BytesIO(frames.pictures[0])).size == (16, 16)
            ref = await one.control("prompt", prompts=[{"text": "a red circle", "weight": 1}])
            event = (await one.until("heard", ref=ref))["event"]
            assert await one.until("applied", event=event, control="prompt")
            while (await one.frames()).event != event:
                pass
            assert (await one.frames()).play_index >= 12
            await one.send(type="played", frame=12)
            await one.send(type="ping", t=12.5)
            assert (await one.until("pong"))["t"] == 12.5
            assert next(iter(session.viewers)).play_index == 13

    asyncio.run(run())


def test_webp_pictures():
    async def run():
        registry = LiveRegistry("webp")
        id = registry.add(session := FakeSession())
        hosted, wake = registry.find(id), asyncio.Event()
        assert hosted is not None
        loop = asyncio.get_running_loop()
        queue = session.subscribe(on_message=lambda: loop.call_soon_threadsafe(wake.set))
        session.start()
        await wake.wait()
        session.stop()
        message = await hosted.batches.message(queue.get())
        assert message[30] == 2 and Image.open(io.BytesIO(message[36:])).format == "WEBP"
        registry.close()

    asyncio.run(run())


def test_a_batch_is_encoded_once_for_all_viewers(monkeypatch):
    from salt.live.server import frames

    encoded = []
    monkeypatch.setattr(
        frames,
        "frames_message",
        lambda batch, kind, make=frames.frames_message: encoded.append(batch.block) or make(batch, kind),
    )

    async def run():
        async with served(FakeSession(0.05)) as (address, id):
            async with viewer(address, id) as one, viewer(address, id) as two, viewer(address, id) as three:
                for each in (one, two, three):
                    while (await each.frames()).block < 5:
                        pass

    asyncio.run(run())
    assert len(encoded) >= 5 and len(set(encoded)) == len(encoded)


def test_a_viewer_that_comes_back_is_told_what_it_missed():
    async def run():
        async with served(FakeSession()) as (address, id):
            async with viewer(address, id) as one:
                refs = [await one.control("seed", seed=1), await one.control("pause")]
                first = (await one.until("heard", ref=refs[0]))["event"]
                last = (await one.until("heard", ref=refs[1]))["event"]
                await one.until("applied", event=last)
            async with viewer(address, id, after=first) as again:
                assert again.welcome["steering"]
                assert (await again.next())["event"] == last

    asyncio.run(run())


def test_one_viewer_steers_and_hands_over():
    async def run():
        session = FakeSession()
        async with served(session) as (address, id), viewer(address, id) as one:
            async with viewer(address, id) as two:
                assert not two.welcome["steering"]
                ref = await two.control("seed", seed=3)
                assert (await two.until("refused", ref=ref))["field"] == "steering"
                assert session.sent == []
                await two.send(type="steer")
                told = await one.until("steering")
                assert told["you"] and told["asking"] == [two.welcome["viewer"]]
                await one.send(type="release")
                assert not (await one.until("steering"))["you"] and await two.until("steering", you=True)
                ref = await two.control("seed", seed=3)
                assert await two.until("heard", ref=ref)
                ref = await one.control("seed", seed=4)
                assert await one.until("refused", ref=ref)
            assert await one.until("steering", you=True)  # the other has left
            ref = await one.control("seed", seed=4)
            assert await one.until("heard", ref=ref)

    asyncio.run(run())


def test_who_steers_after_whom():
    steering = SteeringRight()
    for name in "abcd":
        steering.join(name)
    assert steering.steerer == "a"
    steering.ask("c")
    steering.ask("c")
    steering.ask("a")
    assert steering.steerer == "a" and steering.asking == ["c"]
    steering.release("d")  # which does not have it
    assert steering.steerer == "a"
    steering.leave("a")  # those who asked come first
    assert steering.steerer == "c" and steering.asking == []
    steering.leave("c")  # then the one who has been there longest
    assert steering.steerer == "b"
    steering.release("b")
    assert steering.steerer is None
    steering.join("e")  # not the first: whoever wants it asks
    assert steering.steerer is None
    steering.ask("d")
    assert steering.steerer == "d"
    for name in "dbe":
        steering.leave(name)
    assert steering.steerer is None
    steering.join("f")
    assert steering.steerer == "f"


def test_a_viewer_that_does_not_read_slows_nobody():
    """Its queue in the session is bounded; the others and the session go on."""

    async def run():
        session = FakeSession(0.002, size=256)
        async with served(session) as (address, id), viewer(address, id) as one, viewer(address, id):
            reading, lagging = session.viewers
            while lagging.dropped < 60:
                await one.frames()
            assert reading.dropped < lagging.dropped

    asyncio.run(run())


def test_a_slow_viewer_is_told_what_was_left_out():
    async def run():
        async with served(FakeSession(0.001, size=128)) as (address, id), viewer(address, id) as one:
            await asyncio.sleep(0.1)
            told = await one.until("dropped")
            assert told["frames"] > 0 and told["total"] >= told["frames"] and told["frames"] % 12 == 0

    asyncio.run(run())


@pytest.mark.parametrize("played", [{"frame": 10**12}, {"frame": 0, "dropped": 10**12}])
def test_nobody_has_played_what_was_not_sent(played):
    """The rollout would run ahead of everybody, and drops be counted that were none."""

    async def run():
        session = FakeSession()
        async with served(session) as (address, id), viewer(address, id) as one:
            await one.frames()
            await one.send(type="played", **played)
            assert "not all was sent" in (await one.until("refused"))["message"]
            assert next(iter(session.viewers)).play_index == 0 and session.viewers.drops == 0

    asyncio.run(run())


def test_too_many_viewers_are_refused(monkeypatch):
    monkeypatch.setattr("salt.live.server.hosted.MAX_VIEWERS", 3)

    async def run():
        async with served(FakeSession(1)) as (address, id), aiohttp.ClientSession() as client:
            sockets = [await client.ws_connect(f"{address}/ws?session={id}") for _ in range(4)]
            for socket in sockets:
                await socket.send_str('{"type": "hello"}')
                first = await socket.receive_json()
            assert first["type"] == "bye" and "3 of them" in first["reason"]
            for socket in sockets:
                await socket.close()

    asyncio.run(run())


def test_probes_and_files():
    async def run():
        session = FakeSession(0.2)
        async with served(session) as (address, id), aiohttp.ClientSession() as client:

            async def get(path):
                async with client.get(address + path) as response:
                    return response.status, await response.read()

            assert (await get("/healthz"))[0] == 200
            assert (await get("/readyz"))[0] == 503
            while (await get("/readyz"))[0] == 503:
                await asyncio.sleep(0.02)
            assert session.state().status == "playing"
            assert id in (await get("/api/sessions"))[1].decode()
            status, picture = await get(f"/api/{id}/thumbnail?branch=0&frame=12")
            assert status == 200 and Image.open(io.BytesIO(picture)).format == "JPEG"
            for query in ("", "?branch=0", "?branch=-1&frame=0", "?branch=0&frame=1e9", f"?branch=0&frame={'9' * 99}"):
                assert (await get(f"/api/{id}/thumbnail{query}"))[0] == 400
            assert (await get(f"/api/{id}/thumbnail?branch=7&frame=0"))[0] == 404
            for name in ("state", "stream.mp4", "recording.mp4", "replay.json", "thumbnail"):
                assert (await get(f"/api/{id[:-1]}/{name}"))[0] == 404
            assert (await get("/ws?session=other"))[0] == 404

    asyncio.run(run())


def test_viewers_are_told_when_a_session_is_served_no_longer():
    async def run():
        registry = LiveRegistry()
        async with served(FakeSession(), registry=registry) as (address, id), viewer(address, id) as one:
            registry.remove(id, "the workflow has ended")
            assert (await one.until("bye"))["reason"] == "the workflow has ended"
            await one.closed()
            with pytest.raises(aiohttp.WSServerHandshakeError):
                async with viewer(address, id):
                    pass

    asyncio.run(run())


def test_a_viewer_that_comes_back_gets_all_receipts_that_are_kept():
    async def run():
        session = FakeSession()
        session.viewers.receipts.extend(Superseded(event, event + 1) for event in range(MAX_RECEIPTS))
        async with served(session) as (address, id), viewer(address, id, after=0) as one:
            await one.until("superseded", event=1)
            await one.until("superseded", event=MAX_RECEIPTS - 1)
            await one.frames()

    asyncio.run(run())


class Rising:
    """A number that is another one every time."""

    def __eq__(self, other):
        return False


def test_the_recording_and_the_replay_are_downloads(tmp_path):
    async def run():
        session = FakeSession()
        async with served(session) as (address, id), aiohttp.ClientSession() as client:

            async def get(name):
                async with client.get(f"{address}/api/{id}/{name}") as response:
                    return response.status, response.headers.get("Content-Disposition"), await response.read()

            assert (await get("recording.mp4"))[0] == 404
            session.recording = branch = RecordedBranch(tmp_path / "a name that is not told.mp4")
            assert (await get("recording.mp4"))[0] == 404
            branch.path.write_bytes((content := bytes(range(256)) * 3000) + b"half a fragment")
            branch.size = len(content)
            assert await get("recording.mp4") == (200, 'attachment; filename="salt-live.mp4"', content)
            branch.cuts = Rising()  # it is rewound while it is read
            with pytest.raises(aiohttp.ClientPayloadError):
                await get("recording.mp4")
            status, disposition, text = await get("replay.json")
            assert status == 200 and "salt-live.replay.json" in disposition and text == b'{"format": "none"}'

    asyncio.run(run())


def test_the_stream_is_encoded_once_and_only_while_somebody_watches(tmp_path):
    """A player that comes later begins with a key frame; the file that it gets plays."""

    async def run():
        session = FakeSession(0.05, size=32)
        async with served(session) as (address, id), aiohttp.ClientSession() as client:

            async def watch(path, bytes_wanted):
                async with client.get(f"{address}/api/{id}/stream.mp4") as response:
                    assert response.content_type == "video/mp4"
                    with path.open("wb") as file:
                        while file.tell() < bytes_wanted:
                            file.write(await response.content.readany())

            assert len(session.viewers) == 0
            one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
            first = asyncio.create_task(watch(one, 80_000))
            while not one.exists() or one.stat().st_size == 0:
                await asyncio.sleep(0.01)
            await watch(two, 30_000)
            assert len(session.viewers) == 1
            await first
            while len(session.viewers):
                await asyncio.sleep(0.01)
            for path in (one, two):
                assert path.read_bytes()[4:8] == b"ftyp"
                assert count_frames_and_secs(path)[0] >= 5

    asyncio.run(run())


def test_the_stream_ends_with_the_session():
    async def run():
        session = FakeSession(0.02)
        async with served(session) as (address, id), aiohttp.ClientSession() as client:
            async with client.get(f"{address}/api/{id}/stream.mp4") as response:
                await response.content.readany()
                session.stop()
                await asyncio.wait_for(response.content.read(), 20)

    asyncio.run(run())
