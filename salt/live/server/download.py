"""The recording as a download: what is recorded when it is asked for, while the recording goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import IO

from aiohttp import web

from .hosted import HostedSession
from .security import HEADERS, refused

PIECE = 2**18


async def send_recording(request: web.Request, hosted: HostedSession) -> web.StreamResponse:
    branch = hosted.session.recorded_branch()
    if branch is None:
        return refused(404, "the session is not recorded")
    size, cuts = branch.size, branch.cuts  # whole frames: the one that is being written is left out
    if not size:
        return refused(404, "nothing is recorded yet")
    loop = asyncio.get_running_loop()
    try:
        file = await loop.run_in_executor(None, branch.path.open, "rb")
    except OSError as error:
        return refused(404, f"the recording cannot be read ({error.strerror or 'unknown reason'})")
    try:
        return await _send(request, file, size, lambda: branch.cuts == cuts)
    finally:
        file.close()


async def _send(request: web.Request, file: IO[bytes], size: int, is_uncut: Callable[[], bool]) -> web.StreamResponse:
    """The first `size` bytes. A rewind that cuts the file meanwhile ends the download early."""
    disposition = {"Content-Disposition": 'attachment; filename="salt-live.mp4"'}
    response = web.StreamResponse(headers={**HEADERS, **disposition, "Content-Type": "video/mp4"})
    response.content_length = size
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    loop = asyncio.get_running_loop()
    while size and (piece := await loop.run_in_executor(None, file.read, min(PIECE, size))) and is_uncut():
        await response.write(piece)
        size -= len(piece)
    if size and request.transport is not None:
        request.transport.abort()  # so that the client does not take it for the whole file
    return response
