"""The routes of live sessions below `/salt/live`, for `salt live`'s own server and for ComfyUI's."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from ...errors import InputError
from ...io.printable import one_line
from .download import send_recording
from .hosted import HostedSession, LiveRegistry
from .security import COOKIE, PAGE_HEADERS, Access, guarded, refused
from .websocket import serve_viewer

PREFIX = "/salt/live"
PAGE_FOLDER = Path(__file__).parents[1] / "page"
SCRIPT = "text/javascript"  # some systems' tables of types have something else for .js, which browsers refuse to run

SessionHandler = Callable[[web.Request, HostedSession], Awaitable[web.StreamResponse]]


def add_routes(router: web.UrlDispatcher, registry: LiveRegistry, access: Access) -> None:
    """Add all routes to a server's router. What they serve is in `registry`, whatever is added to it later."""
    routes = _Routes(registry, access, page_files(PAGE_FOLDER))
    for path, handler in (
        ("/", routes.page),
        ("/static/{name:.+}", routes.static),
        ("/ws", routes.websocket),
        ("/api/sessions", routes.sessions),
        ("/api/{session}/state", routes.of_session(_state)),
        ("/api/{session}/stream.mp4", routes.of_session(_stream)),
        ("/api/{session}/recording.mp4", routes.of_session(send_recording)),
        ("/api/{session}/replay.json", routes.of_session(_replay)),
        ("/api/{session}/thumbnail", routes.of_session(_thumbnail)),
    ):
        router.add_get(PREFIX + path, guarded(access, handler))
    router.add_get(PREFIX, guarded(access, _to_page))
    # What a supervisor asks, which has no token; the answers tell nothing else.
    router.add_get(f"{PREFIX}/healthz", guarded(access, routes.healthy, needs_token=False))
    router.add_get(f"{PREFIX}/readyz", guarded(access, routes.ready, needs_token=False))


def page_files(folder: Path) -> dict[str, Path]:
    """The page's files by their names in addresses: a request chooses among these, and never names a path."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


class _Routes:
    def __init__(self, registry: LiveRegistry, access: Access, files: dict[str, Path]) -> None:
        self._registry = registry
        self._access = access
        self._files = files

    def of_session(self, handler: SessionHandler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def with_session(request: web.Request) -> web.StreamResponse:
            hosted = self._registry.find(request.match_info["session"])
            return await handler(request, hosted) if hosted else _no_session()

        return with_session

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The page; with the token in its address it also sets the cookie that the page's own requests carry."""
        if "index.html" not in self._files:
            return refused(404, "this installation has no page")
        response = web.FileResponse(self._files["index.html"], headers=PAGE_HEADERS)
        response.content_type = "text/html"
        if self._access.token is not None:
            response.set_cookie(
                COOKIE, self._access.token, path=PREFIX, httponly=True, samesite="Strict", secure=request.secure
            )
        return response

    async def static(self, request: web.Request) -> web.StreamResponse:
        path = self._files.get(request.match_info["name"])
        if path is None:
            return refused(404, "found no such file of the page")
        kind = SCRIPT if path.suffix in (".js", ".mjs") else mimetypes.guess_type(path.name)[0]
        response = web.FileResponse(path, headers={**PAGE_HEADERS, "Cache-Control": "no-cache"})
        response.content_type = kind or "application/octet-stream"
        return response

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        hosted = self._registry.find(request.query.get("session", ""))
        return await serve_viewer(request, hosted) if hosted else _no_session()

    async def sessions(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"sessions": [{"id": hosted.id, **hosted.state()} for hosted in self._registry]})

    async def healthy(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """200 where a session has made its first block, and none has failed."""
        found = {hosted.session.state().status for hosted in self._registry}
        warm = bool(found) and not found & {"warming", "failed"}
        return web.json_response({"status": "ready" if warm else "not ready"}, status=200 if warm else 503)


def _no_session() -> web.Response:
    return refused(404, "found no such session; it may have ended")


async def _to_page(request: web.Request) -> web.StreamResponse:
    return web.Response(status=308, headers={"Location": str(request.rel_url.with_path(f"{PREFIX}/", keep_query=True))})


async def _state(request: web.Request, hosted: HostedSession) -> web.StreamResponse:
    return web.json_response(hosted.state())


async def _stream(request: web.Request, hosted: HostedSession) -> web.StreamResponse:
    return await hosted.stream.serve(request)


async def _replay(request: web.Request, hosted: HostedSession) -> web.StreamResponse:
    try:
        text = await asyncio.get_running_loop().run_in_executor(None, lambda: hosted.session.replay().to_json())
    except InputError as error:
        return refused(409, one_line(error))
    disposition = {"Content-Disposition": 'attachment; filename="salt-live.replay.json"'}
    return web.Response(text=text, content_type="application/json", headers=disposition)


async def _thumbnail(request: web.Request, hosted: HostedSession) -> web.StreamResponse:
    branch, frame = (_number(request.query.get(name, "")) for name in ("branch", "frame"))
    if branch is None or frame is None:
        return refused(400, "branch and frame: expected two numbers")
    picture = hosted.session.thumbnail(branch, frame)
    if picture is None:
        return refused(404, f"found no frame {frame} of branch {branch}")
    return web.Response(body=picture, content_type="image/jpeg")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None
