"""Who may reach the routes: the Host and Origin of a request, its token, and how many messages a client may send.

A page of another site that is open in the same browser can send requests to any address, loopback included. Its
requests say so: `Origin` and `Sec-Fetch-Site` name another site, and where its name was made to point here (DNS
rebinding), `Host` is that name. A request is answered only where none of this is so.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

from aiohttp import web

from ...errors import InputError

COOKIE = "salt_live_token"
MAX_MESSAGE_BYTES = 64 * 2**10
MESSAGES_PER_SECOND = 50
MIN_TOKEN_LENGTH = 8

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",  # a page of another site cannot show pictures or videos from here
    "Referrer-Policy": "no-referrer",  # the page's address may hold the token
    "Cache-Control": "no-store",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Access:
    """Who may reach a server. hosts: names or addresses that it is bound to; token: needed where it is set.

    any_name: requests may call it by any name, as those that come through a proxy do.
    Raises InputError for a server that other machines can reach without a token, and for any name on this machine.
    """

    hosts: tuple[str, ...] = ("127.0.0.1",)
    token: str | None = None
    any_name: bool = False

    def __post_init__(self) -> None:
        if self.any_name and self.is_loopback:
            raise InputError("any_name", "is for a server that other machines reach")
        if self.token is None:
            if not self.is_loopback:
                raise InputError("token", f"is needed beyond this machine (host {', '.join(self.hosts)})")
        elif not re.fullmatch(rf"[A-Za-z0-9._~-]{{{MIN_TOKEN_LENGTH},256}}", self.token):
            raise InputError("token", f"must have {MIN_TOKEN_LENGTH} to 256 letters, digits or -._~")

    @cached_property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return all(is_loopback(host) for host in self.hosts)

    @cached_property
    def _names(self) -> frozenset[str]:
        machine = socket.gethostname().lower()
        return frozenset(
            {*(host.lower() for host in self.hosts), machine, f"{machine}.local", socket.getfqdn().lower()}
        )

    def refusal(self, request: web.Request, needs_token: bool = True) -> web.Response | None:
        """The answer to a request that is refused, None for one that may go on."""
        if not self._knows_host(request):
            return refused(403, "the Host header is no name or address of this server")
        if not _same_origin(request):
            return refused(403, "the request comes from a page of another site")
        if needs_token and not self._has_token(request):
            return refused(401, "the token is missing or wrong; open the address that the server printed")
        return None

    def _knows_host(self, request: web.Request) -> bool:
        """Beyond loopback any address is right, as it cannot be a name that was made to point here; a container does
        not know the address that others reach it by."""
        headers = request.headers.getall("Host", [])
        name = _host_and_port(headers[0])[0] if len(headers) == 1 else None
        if name is None:
            return False
        if is_loopback(name):
            return True
        return not self.is_loopback and (self.any_name or _is_address(name) or name in self._names)

    def _has_token(self, request: web.Request) -> bool:
        if self.token is None:
            return True
        found = (request.query.get("token"), request.cookies.get(COOKIE))
        return any(hmac.compare_digest(_bytes(value), _bytes(self.token)) for value in found if value is not None)


def refused(status: int, problem: str) -> web.Response:
    return web.json_response({"error": problem}, status=status)


def guarded(access: Access, handler: Handler, needs_token: bool = True) -> Handler:
    """The handler, called only for requests that `access` lets through; its answers have the security headers."""

    async def checked(request: web.Request) -> web.StreamResponse:
        response = access.refusal(request, needs_token) or await handler(request)
        if not response.prepared:
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    return checked


class RateLimit:
    """Counts a client's messages: on average so many a second, and as many at once."""

    def __init__(self, per_second: float = MESSAGES_PER_SECOND) -> None:
        self._per_second = self._left = per_second
        self._last = time.monotonic()

    def allows_one_more(self) -> bool:
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._last) * self._per_second)
        self._last = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _same_origin(request: web.Request) -> bool:
    """Whether the request was sent by a page of this server, or by no page (a player, a typed address)."""
    headers = request.headers
    origin = headers.get("Origin")
    if origin is not None and _origin_host(origin) != _host_and_port(headers["Host"]):
        return False
    if headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none"):
        return True
    # A link on another site that is followed: its page is gone then.
    return headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"


def _origin_host(origin: str) -> tuple[str | None, int | None]:
    """Host and port of an origin. (None, None) for anything else, as the `null` of a file or sandboxed frame."""
    scheme, separator, host = origin.partition("://")
    if scheme.lower() not in ("http", "https") or not separator:
        return None, None
    return _host_and_port(host)


def _host_and_port(text: str) -> tuple[str | None, int | None]:
    """Name in small letters and port, None for the default ones. (None, None) where the text is no host."""
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\](:\d+)?|[A-Za-z0-9._-]+(:\d+)?", text):
        return None, None
    try:
        parts = urlsplit(f"//{text}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None, None
    return name, None if port in (80, 443) else port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if name.lower() == "localhost":
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
