"""`pull` against a local fake hub: complete, interrupted, corrupted and missing files, and no hub at all."""

import argparse
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import file_download

from salt.cli import pull as pull_command
from salt.io.hub import HubError, models_folder, pull

COMMIT = "a" * 40
LARGE = bytes(range(256)) * 4096  # 1 MiB, stored as LFS
SMALL = b'{"z_dim": 16}'
FILES = {
    "domiso/Salt": {"checkpoints/salt_cf.pt": LARGE, "checkpoints/readme.txt": b"two students"},
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {"vae/config.json": SMALL, "vae/model.safetensors": LARGE[::-1]},
    "nvidia/AnyFlow-FAR-Wan2.1-1.3B-Diffusers": {
        "model_index.json": SMALL,
        "transformer/config.json": SMALL,
        "vae/model.safetensors": LARGE,
        "a.mp4": b"clip",
    },
    "krea/krea-realtime-video": {"krea-realtime-video-14b.safetensors": LARGE, "README.md": b"card"},
}


class Hub(ThreadingHTTPServer):
    """The endpoints of the hub that a download needs, with faults that a test can switch on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []  # the Range header of every download
        self.cuts: list[int] = []  # the next downloads are cut off after so many bytes
        self.content: dict[str, bytes | None] = {}  # served instead of the listed content; None: 404
        self.ignores_ranges = False
        self.row: dict[str, object] = {}  # listed for every file instead of the right values
        self.refusal: str | None = None  # the error code in the answer for every repository
        self.licence: str | None = None  # that every model card says

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        """No access log in tests."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self.info(*found.groups())
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            self.tree(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.download(*found.groups())
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def info(self, repo: str, revision: str) -> None:
        if self.server.refusal:
            self.answer(403, b"{}", X_Error_Code=self.server.refusal)
        elif revision not in ("main", COMMIT):
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        else:
            card = {} if self.server.licence is None else {"cardData": {"license": self.server.licence}}
            self.answer(200, json.dumps({"id": repo, "sha": COMMIT, **card}).encode())

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        assert revision == COMMIT
        rows = []
        for path, data in FILES[repo].items():
            if folder is not None and not path.startswith(folder + "/"):
                continue
            if folder is None and "/" in path and "recursive=true" not in self.path.lower():
                continue
            row = {"type": "file", "path": path, "size": len(data)}
            row["oid"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            if len(data) > 1000:
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            rows.append(row | self.server.row)
        self.answer(200, json.dumps(rows).encode())

    def download(self, repo: str, revision: str, path: str) -> None:
        assert revision == COMMIT
        data = self.server.content.get(path, FILES[repo].get(path))
        if data is None:
            self.answer(404, b"", X_Error_Code="EntryNotFound")
            return
        range_header = self.headers.get("Range")
        self.server.ranges.append(range_header)
        start = 0
        if range_header is not None and not self.server.ignores_ranges:
            start = int(range_header.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.server.cuts:
            self.wfile.write(data[start : start + self.server.cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # Without the library's pause of a second before it retries, and with several chunks per file.
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 65536)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    files = pull(["salt-cf", "wan-vae"], tmp_path, endpoint=hub.endpoint, progress=lambda *step: seen.append(step))
    assert {str(file.relative_to(tmp_path)): file.read_bytes() for file in files} == {
        "Salt/checkpoints/salt_cf.pt": LARGE,
        "Wan2.1-T2V-1.3B-Diffusers/vae/config.json": SMALL,
        "Wan2.1-T2V-1.3B-Diffusers/vae/model.safetensors": LARGE[::-1],
    }
    assert sorted(files) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    steps = [done for name, done, total in seen if name.endswith("salt_cf.pt") and total == len(LARGE)]
    assert steps == sorted(steps) and len(steps) > 3 and steps[-1] == len(LARGE)
    downloads = len(hub.ranges)
    assert pull(["salt-cf", "wan-vae"], tmp_path, endpoint=hub.endpoint) == files
    assert len(hub.ranges) == downloads == 3
    # A file with a changed byte is detected and downloaded again.
    files[0].write_bytes(b"!" + LARGE[1:])
    pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    assert files[0].read_bytes() == LARGE


def test_a_cut_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [300_000]
    (file,) = pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    assert file.read_bytes() == LARGE
    assert hub.ranges[0] is None and len(hub.ranges) == 2
    assert 0 < int((hub.ranges[1] or "").removeprefix("bytes=").rstrip("-")) <= 300_000


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_later_call_resumes(ignores_ranges: bool, hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [300_000, *[0] * 20]
    with pytest.raises(HubError, match="pull again to go on"):
        pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    (partial,) = (path for path in tmp_path.rglob("*") if path.is_file())
    kept = partial.stat().st_size
    assert partial.suffix == ".part" and 200_000 < kept <= 300_000
    hub.cuts, hub.ranges, hub.ignores_ranges = [], [], ignores_ranges
    (file,) = pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    assert file.read_bytes() == LARGE and hub.ranges == [f"bytes={kept}-"]
    assert not partial.exists()


def test_wrong_content_does_not_replace_an_older_file(hub: Hub, tmp_path: Path) -> None:
    hub.content = {"checkpoints/salt_cf.pt": LARGE[:-1] + b"!"}
    place = tmp_path / "Salt" / "checkpoints" / "salt_cf.pt"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"an older version")
    with pytest.raises(HubError, match="sha256 hash") as caught:
        pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    assert hashlib.sha256(LARGE).hexdigest() in str(caught.value)
    assert place.read_bytes() == b"an older version" and list(place.parent.iterdir()) == [place]

    hub.content = {"vae/config.json": SMALL.replace(b"16", b"48")}
    with pytest.raises(HubError, match="git hash"):
        pull(["wan-vae"], tmp_path, endpoint=hub.endpoint)


def test_missing_parts_revisions_and_files_are_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="has no salt_ll.pt; it has salt_cf.pt, readme.txt"):
        pull(["salt-ll"], tmp_path, endpoint=hub.endpoint)
    with pytest.raises(HubError, match="unknown part salt-xx; there are salt-cf"):
        pull(["salt-xx"], tmp_path, endpoint=hub.endpoint)
    with pytest.raises(HubError, match="no such file or revision"):
        pull(["salt-cf"], tmp_path, endpoint=hub.endpoint, revision="elsewhere")
    hub.content = {"checkpoints/salt_cf.pt": None}
    with pytest.raises(HubError, match="salt_cf.pt: the hub at .* has no such file"):
        pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    for refusal, message in {"GatedRepo": "accepted its terms", "RepoNotFound": "no such repository"}.items():
        hub.refusal = refusal
        with pytest.raises(HubError, match=message):
            pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "row",
    [
        *({"path": path} for path in ("checkpoints/../../salt_cf.pt", "/tmp/salt_cf.pt", "checkpoints/C:/salt_cf.pt")),
        *(
            {"path": path}
            for path in ("checkpoints/..\\..\\/salt_cf.pt", "checkpoints/\0/salt_cf.pt", "other/salt_cf.pt")
        ),
        {"lfs": {"oid": "../../../escaped", "size": 1, "pointerSize": 1}},
        {"size": "many", "lfs": None},
        {"size": -1, "lfs": None},
    ],
)
def test_a_hub_that_lists_no_plain_file_is_refused_before_anything_is_written(
    hub: Hub, tmp_path: Path, row: dict[str, object]
) -> None:
    hub.row = row
    with pytest.raises(HubError, match=r"found the file name|expected files of that folder|expected a size and a hash"):
        pull(["salt-cf"], tmp_path / "in", endpoint=hub.endpoint)
    assert not list(tmp_path.iterdir())


def test_a_hub_that_sends_more_than_it_lists_is_cut_off(hub: Hub, tmp_path: Path) -> None:
    hub.content["checkpoints/salt_cf.pt"] = LARGE * 2
    with pytest.raises(HubError):
        pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= len(LARGE)


def test_a_file_larger_than_the_disk_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.row = {"size": 10**18, "lfs": None}
    with pytest.raises(HubError, match=r"checkpoints/salt_cf.pt: needs 1,000,000,000,000,000,000 bytes in "):
        pull(["salt-cf"], tmp_path, endpoint=hub.endpoint)


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(HubError, match="could not be fetched from") as caught:
        pull(["salt-cf"], tmp_path, endpoint=endpoint)
    assert endpoint in str(caught.value) and "domiso/Salt" in str(caught.value)


def test_the_default_folder(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALT_MODELS", str(tmp_path / "mine"))
    (file,) = pull(["salt-cf"], endpoint=hub.endpoint)
    assert file == tmp_path / "mine" / "Salt" / "checkpoints" / "salt_cf.pt"
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.raises(HubError, match="could not be fetched"):
        pull(["salt-cf"], blocked, endpoint=hub.endpoint)
    monkeypatch.delenv("SALT_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "salt" / "models"


def pulled(hub: Hub, to: Path, *parts: str, accept: bool = False) -> None:
    pull_command.run(
        argparse.Namespace(parts=list(parts), to=to, endpoint=hub.endpoint, revision="main", accept_licence=accept)
    )


def test_a_restricted_licence_is_accepted_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="then pull with --accept-licence"):  # in a script, by the licence that is known
        pulled(hub, tmp_path, "krea-realtime")
    assert "krea-realtime: licence: see the model card; Krea's code is CC BY-NC-SA 4.0" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    hub.licence, answers = "cc-by-nc-4.0", ["y", ""]
    monkeypatch.setattr("builtins.input", lambda question: answers.pop(0))
    with pytest.raises(HubError, match="salt-cf: not downloaded: its licence was not accepted"):  # by the model card
        pulled(hub, tmp_path, "wan-vae", "salt-cf")
    assert not hub.ranges and not list(tmp_path.rglob("*")) and "the model card says: cc-by-nc-4.0" in (
        capsys.readouterr().out
    )  # fmt: skip
    answers[:] = ["y"]
    pulled(hub, tmp_path, "krea-realtime")
    file = tmp_path / "krea-realtime-video" / "krea-realtime-video-14b.safetensors"
    assert file.read_bytes() == LARGE and not answers, "a file at the top of its repository"
    pulled(hub, tmp_path, "salt-cf", accept=True)
    hub.licence = "apache-2.0"
    pulled(hub, tmp_path, "wan-vae")
    assert "wan-vae: licence: Apache-2.0; the model card says: apache-2.0" in capsys.readouterr().out


def test_a_whole_pipeline_is_downloaded_with_its_folders(hub: Hub, tmp_path: Path) -> None:
    pull(["anyflow"], tmp_path, endpoint=hub.endpoint)
    folder = tmp_path / "AnyFlow-FAR-Wan2.1-1.3B-Diffusers"
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["model_index.json", "transformer/config.json", "vae/model.safetensors"]
