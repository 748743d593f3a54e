"""The small server of `salt live`: one session, its routes, and an orderly end on Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from aiohttp import web

from ...errors import InputError
from ...io.interruption import TERMINATION_SIGNALS, signals_handled_by
from .hosted import LiveRegistry
from .routes import PREFIX, add_routes
from .security import Access, guarded

if TYPE_CHECKING:
    from ..session import LiveSession

SHUTDOWN_SECONDS = 5.0  # for connections that are open when the server ends


def serve(session: LiveSession, access: Access, port: int, on_start: Callable[[str], None]) -> None:
    """Start the session and serve it until Ctrl-C or SIGTERM; then end it, finish its recording and close all sockets.

    on_start: called with the page's address once the server listens. Raises InputError for a port that cannot be
    used, RuntimeError for a session that fails.
    """
    asyncio.run(_serve(session, access, port, on_start))


async def _serve(session: LiveSession, access: Access, port: int, on_start: Callable[[str], None]) -> None:
    registry = LiveRegistry()
    registry.add(session)
    app = web.Application()
    add_routes(app.router, registry, access)
    app.router.add_get("/", guarded(access, _to_page))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        for host in access.hosts:
            await _listen(runner, host, port)
        with ending_signals() as ended:
            session.start()
            host, port = runner.addresses[0][:2]
            on_start(page_address(host, port, access.token))
            await _until_ended(session, ended)
            session.stop()
            await asyncio.get_running_loop().run_in_executor(None, session.join)
    finally:
        registry.close()
        await runner.cleanup()
    if (state := session.state()).status == "failed":
        raise RuntimeError(state.message)


async def _until_ended(session: LiveSession, ended: asyncio.Event) -> None:
    """Until a signal, or until the session fails. One that a viewer has stopped is served on, for its downloads."""
    finished = asyncio.get_running_loop().run_in_executor(None, session.join)
    signalled = asyncio.create_task(ended.wait())
    await asyncio.wait([finished, signalled], return_when=asyncio.FIRST_COMPLETED)
    if finished.done() and session.state().status != "failed":
        await signalled
    signalled.cancel()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except socket.gaierror as error:
        raise InputError(
            "host", f"found {host!r}, expected a name or address of this machine ({error.strerror})"
        ) from None
    except OSError as error:
        raise InputError("port", f"found {port}, which cannot be used on {host} ({error.strerror or error})") from None


def page_address(host: str, port: int, token: str | None) -> str:
    """The page's address as a user opens it."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    query = f"?token={token}" if token is not None else ""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PREFIX}/{query}"


@contextmanager
def ending_signals() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C and termination signals set. A second one interrupts at once."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        loop.call_soon_threadsafe(ended.set)

    with signals_handled_by(end, (signal.SIGINT, *TERMINATION_SIGNALS)):
        yield ended


async def _to_page(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": str(request.rel_url.with_path(f"{PREFIX}/", keep_query=True))})
