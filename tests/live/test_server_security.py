"""Who may reach the routes: Host, Origin, token, and the headers of what is answered."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from salt.errors import InputError
from salt.live.server.hosted import LiveRegistry
from salt.live.server.routes import PREFIX, add_routes
from salt.live.server.security import COOKIE, Access
from tests.helpers.fake_live_session import FakeSession
from tests.helpers.live_server import served, viewer

TOKEN = "a-token-of-some-length"
BEYOND = Access(hosts=("0.0.0.0",), token=TOKEN)


def statuses(requests, access=None):
    """The status of each request: (path below the prefix, headers); `SESSION` in a path is the session's id."""

    async def run():
        async with served(FakeSession(), access) as (address, id), aiohttp.ClientSession() as client:
            found = []
            for path, headers in requests:
                port = address.split(":")[2].split("/")[0]
                headers = {name: value.replace("PORT", port) for name, value in headers.items()}
                async with client.get(address + path.replace("SESSION", id), headers=headers) as response:
                    found.append(response.status)
            return found

    return asyncio.run(run())


LOCAL = "/api/SESSION/state"


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Host": "localhost:PORT"}, 200),
        ({"Host": "LOCALHOST:9000"}, 200),  # a forwarded port
        ({"Host": "[::1]:PORT"}, 200),
        ({"Host": "127.0.0.1:PORT", "Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Host": "localhost", "Origin": "https://localhost"}, 200),  # behind a proxy with TLS
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Host": "evil.example:PORT"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "192.168.1.7:PORT"}, 403),
        ({"Host": "127.0.0.1@evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"Origin": "http://127.0.0.1:PORT.evil.example"}, 403),
        ({"Origin": "file://127.0.0.1:PORT"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
    ],
)
def test_a_page_of_another_site_is_refused(headers, status):
    assert statuses([(LOCAL, headers)]) == [status]


def test_every_route_is_guarded():
    """Those of sessions need the token as well, also where it is right in part."""
    app = web.Application()
    add_routes(app.router, LiveRegistry(), BEYOND)
    paths = [resource.canonical.removeprefix(PREFIX) for resource in app.router.resources()]
    paths = [path.replace("{session}", "SESSION") for path in paths if path not in ("/healthz", "/readyz")]
    assert {"", "/", "/ws", "/static/{name}", "/api/sessions", "/api/SESSION/state"} <= set(paths)
    foreign, wrong = {"Origin": "http://evil.example"}, {"Cookie": f"{COOKIE}={TOKEN[:-1]}"}
    found = statuses([(path, headers) for path in paths for headers in (foreign, {}, wrong)], BEYOND)
    assert found == [403, 401, 401] * len(paths)
    probes = [("/healthz", {}), ("/healthz", {"Host": "evil.example"}), ("/readyz", {"Host": "evil.example"})]
    assert statuses(probes, BEYOND) == [200, 403, 403]


@pytest.mark.parametrize(
    "path, headers, status",
    [
        (f"{LOCAL}?token={TOKEN}", {}, 200),
        (LOCAL, {"Cookie": f"{COOKIE}={TOKEN}"}, 200),
        (f"{LOCAL}?token={TOKEN}", {"Host": "192.168.1.7:8198"}, 200),
        (f"{LOCAL}?token={TOKEN}", {"Host": "evil.example"}, 403),
        (f"{LOCAL}?token={TOKEN}x", {}, 401),
        (f"{LOCAL}?token=", {}, 401),
        (f"{LOCAL}?token=%ff%00", {}, 401),
        (LOCAL, {"Cookie": f"other={TOKEN}"}, 401),
    ],
)
def test_the_token_is_needed_beyond_this_machine(path, headers, status):
    assert statuses([(path, headers)], BEYOND) == [status]


@pytest.mark.parametrize("hosts", [("0.0.0.0",), ("::",), ("192.168.1.7",), ("example.com",), ("127.0.0.1", "0.0.0.0")])
def test_no_server_beyond_this_machine_without_a_token(hosts):
    with pytest.raises(InputError, match="token is needed beyond this machine"):
        Access(hosts)


@pytest.mark.parametrize("token", ["", "short", "with spaces in it", 'quoted"token"here', "x" * 257])
def test_tokens_that_no_cookie_holds_or_that_are_guessed_are_refused(token):
    with pytest.raises(InputError, match="must have 8 to 256 letters"):
        Access(token=token)


def test_a_foreign_page_can_neither_watch_nor_steer():
    async def run():
        async with served(FakeSession()) as (address, id):
            for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
                with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                    async with viewer(address, id, headers=headers):
                        pass
                assert error.value.status == 403

    asyncio.run(run())


def test_the_page_sets_the_cookie_that_its_requests_carry(monkeypatch, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html><title>page</title>")
    (tmp_path / "app.js").write_text("export {};")
    monkeypatch.setattr("salt.live.server.routes.PAGE_FOLDER", tmp_path)

    async def run():
        jar = aiohttp.CookieJar(unsafe=True)  # which keeps cookies of addresses
        async with served(FakeSession(), BEYOND) as (address, id), aiohttp.ClientSession(cookie_jar=jar) as client:
            async with client.get(f"{address}/?token={TOKEN}") as page:
                assert page.status == 200 and page.content_type == "text/html"
                cookie = page.headers["Set-Cookie"]
                assert all(
                    part in cookie for part in (f"{COOKIE}={TOKEN}", "HttpOnly", "SameSite=Strict", "Path=/salt/live")
                )
                policy = page.headers["Content-Security-Policy"]
                assert (
                    "script-src 'self';" in policy
                    and "default-src 'none'" in policy
                    and "frame-ancestors 'self'" in policy
                    and "unsafe" not in policy
                )
                assert page.headers["X-Content-Type-Options"] == "nosniff"
                assert page.headers["Referrer-Policy"] == "no-referrer"
            async with client.get(f"{address}/static/app.js") as script:
                assert script.status == 200 and script.content_type == "text/javascript"
            async with client.get(address) as there:
                assert there.url.path == "/salt/live/" and there.status == 200
            async with client.ws_connect(f"{address}/ws?session={id}") as ws:
                await ws.send_str('{"type": "hello"}')
                assert (await ws.receive_json())["type"] == "welcome"

    asyncio.run(run())


@pytest.mark.parametrize("name", ["../security.py", "..%2fsecurity.py", "%2e%2e/security.py", "/etc/passwd", "%00"])
def test_static_names_are_no_paths(name):
    assert statuses([(f"/static/{name}", {})])[0] in (400, 404)


def test_any_name_is_right_behind_a_proxy_but_not_another_site():
    proxied = Access(("0.0.0.0",), TOKEN, any_name=True)
    name = {"Host": "abc-8188.proxy.example"}
    found = statuses(
        [
            (f"{LOCAL}?token={TOKEN}", name),
            (f"{LOCAL}?token={TOKEN}", {**name, "Origin": "https://abc-8188.proxy.example"}),
            (f"{LOCAL}?token={TOKEN}", {**name, "Origin": "https://evil.example"}),
            (LOCAL, name),
        ],
        proxied,
    )
    assert found == [200, 200, 403, 401]
    with pytest.raises(InputError, match="any_name"):
        Access(any_name=True)
