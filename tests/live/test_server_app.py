"""The server of `salt live`: it ends on a signal, in order, and leaves nothing behind."""

import asyncio
import os
import signal
import socket
import threading

import aiohttp
import pytest

from salt.errors import InputError
from salt.live.server.app import page_address, serve
from salt.live.server.security import Access
from tests.helpers.fake_live_session import FakeSession
from tests.helpers.live_server import viewer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_session_and_all_connections(number):
    """`serve` needs the main thread, for the signals; the viewer has one of its own."""
    told, before = [], threading.active_count()

    async def watch(address):
        async with aiohttp.ClientSession() as client, client.get(f"{address}api/sessions") as response:
            (session,) = (await response.json())["sessions"]
        async with viewer(address.rstrip("/"), session["id"]) as one:
            os.kill(os.getpid(), number)
            told.append((await one.until("bye"))["reason"])
            told.append(await one.closed())

    viewers = []

    def start(address):
        viewers.append(threading.Thread(target=lambda: asyncio.run(watch(address))))
        viewers[0].start()

    session, handler = FakeSession(), signal.getsignal(number)
    serve(session, Access(), 0, start)
    viewers[0].join(20)
    assert session.status == "stopped" and told == ["the server has ended", aiohttp.WSCloseCode.POLICY_VIOLATION]
    assert signal.getsignal(number) is handler and threading.active_count() == before


def test_a_session_that_fails_ends_the_server():
    session = FakeSession()
    session.fail("the decoder computes NaN in block 3")
    with pytest.raises(RuntimeError, match="the decoder computes NaN in block 3"):
        serve(session, Access(), 0, lambda address: None)


def test_a_port_or_host_that_cannot_be_used_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="port: found"):
        serve(FakeSession(), Access(), other.getsockname()[1], print)
    with pytest.raises(InputError, match="host: found 'no.such.invalid'"):
        serve(FakeSession(), Access(("no.such.invalid",), "a-token-of-some-length"), 0, print)


@pytest.mark.parametrize(
    "host, token, address",
    [
        ("127.0.0.1", None, "http://127.0.0.1:8198/salt/live/"),
        ("::1", None, "http://[::1]:8198/salt/live/"),
        ("0.0.0.0", "a-token", f"http://{socket.gethostname()}:8198/salt/live/?token=a-token"),
    ],
)
def test_the_address_that_is_printed(host, token, address):
    assert page_address(host, 8198, token) == address
