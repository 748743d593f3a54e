"""The routes of live sessions on ComfyUI's own server, and the sessions that they serve."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .running import prompt_server

if TYPE_CHECKING:
    from ...salt.live.server.hosted import LiveRegistry
    from ...salt.live.server.security import Access
    from ...salt.live.session import LiveSession
    from .live_host import LivePrompt

TOKEN_BYTES = 24


@dataclass(frozen=True)
class Mounted:
    """What the routes serve, and to whom."""

    registry: LiveRegistry
    access: Access


_mounted: list[Mounted] = []  # one, once ComfyUI has loaded the pack


def mount(server: Any) -> Mounted:
    """Add the routes, once, before ComfyUI adds its own. server: its PromptServer."""
    from ...salt.live.server.hosted import LiveRegistry
    from ...salt.live.server.routes import add_routes

    mounted = Mounted(LiveRegistry(), access())
    add_routes(server.app.router, mounted.registry, mounted.access)
    _mounted.append(mounted)
    return mounted


def access() -> Access:
    """Who may reach them: pages of this server, on this machine. Where ComfyUI listens beyond it, they need a token,
    which ComfyUI's page gets from its own server; any name is right there, as ComfyUI's own routes have it, since a
    rented machine is reached through a proxy."""
    from comfy.cli_args import args

    from ...salt.live.server.security import Access, is_loopback

    hosts = tuple(host.strip() for host in str(args.listen).split(",") if host.strip()) or ("127.0.0.1",)
    if all(map(is_loopback, hosts)):
        return Access(hosts)
    return Access(hosts, secrets.token_urlsafe(TOKEN_BYTES), any_name=True)


@contextmanager
def served(session: LiveSession[LivePrompt]) -> Iterator[str]:
    """While open, the session's id on the server; "" where there is none."""
    server = prompt_server()
    if server is None or not _mounted:
        yield ""
        return
    registry = _mounted[0].registry

    async def add() -> str:
        return registry.add(session)

    name = asyncio.run_coroutine_threadsafe(add(), server.loop).result()
    try:
        yield name
    finally:
        server.loop.call_soon_threadsafe(registry.remove, name)
