"""The pack's routes on ComfyUI's server: which rollouts run, how one is ended, and what files hold.

ComfyUI has them below /api, too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .live_routes import Mounted, mount
from .running import running_nodes, stop_node

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY_BYTES = 2**12
Answer = dict[str, dict[str, object] | None]


def add_routes(server: Any) -> None:
    """Once, before ComfyUI adds its routes. server: its PromptServer."""
    mounted = mount(server)

    async def running(request: web.Request) -> web.Response:
        return answer_running(request, mounted)

    server.routes.get("/salt/running")(running)
    server.routes.post("/salt/stop")(answer_stop)
    server.routes.get("/salt/student")(answer_student)
    server.routes.get("/salt/memory")(answer_memory)


def answer_running(request: web.Request, mounted: Mounted) -> web.Response:
    """What runs, and for pages of this server the token of its live sessions, where they need one."""
    from aiohttp import web

    knows = mounted.access.refusal(request, needs_token=False) is None
    return web.json_response({"nodes": running_nodes(), "token": mounted.access.token if knows else None})


async def answer_stop(request: web.Request) -> web.Response:
    """POST {"node": ID}: 200 when the rollout of that node will end after its block, 404 where it does not run."""
    from aiohttp import web

    if request.content_type != "application/json":  # which a page of another site cannot send unasked
        return web.json_response({"error": "expected application/json"}, status=415)
    try:
        body = json.loads(await request.content.read(MAX_BODY_BYTES))
        node = body["node"]
    except (ValueError, KeyError, TypeError):
        node = None
    if not isinstance(node, str):
        return web.json_response({"error": 'node: expected {"node": ID} with the id of a node'}, status=400)
    if not stop_node(node):
        return web.json_response({"error": "node: found no rollout that runs in this node"}, status=404)
    return web.json_response({"stopping": node})


async def answer_student(request: web.Request) -> web.Response:
    """GET ?file=NAME: what `salt inspect` says of a file that Load Salt Student lists, {"lines": {what: value}}, and
    the length of its blocks, "timing", as `student_timing` has it. &trained_as=: of Load Salt Student."""

    def described(name: str) -> Answer:
        from ...salt.cli.inspect import describe_file
        from .loading import check_student, student_path, student_timing

        path = student_path(check_student(name))
        timing = student_timing(path, request.query.get("trained_as", "auto"))
        return {"lines": {**describe_file(path)}, "timing": timing}

    return await answer_file(request, described)


async def answer_memory(request: web.Request) -> web.Response:
    """GET ?file=NAME: the memory bar of a file that Salt Load Memory lists, {"memory": MemoryBar}."""

    def described(name: str) -> Answer:
        from .memory_files import memory_bar

        return {"memory": asdict(memory_bar(name))}

    return await answer_file(request, described)


async def answer_file(request: web.Request, describe: Callable[[str], Answer]) -> web.Response:
    """What `describe` says of the file that a request names; 400 and the reason where it cannot be read."""
    from aiohttp import web

    try:
        return web.json_response(await asyncio.to_thread(describe, request.query.get("file", "")))
    except (ValueError, OSError) as error:
        return web.json_response({"error": str(error)[:400]}, status=400)
