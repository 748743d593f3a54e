"""Resumable, hash-checked downloads of released weights from the Hugging Face Hub.

A file is downloaded beside its destination, compared with the hash that the hub lists, and only then moved there. The
hub library's own `hf_hub_download` is not used: version 2 does not resume a download that an earlier call began, and it
deletes an older file before the new one is complete.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
)

from .atomic import replace_file
from .hub_parts import PARTS, Part
from .remote_names import local_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

HUB_PROGRESS_BAR = "huggingface_hub.http_get"
HASH_CHUNK_BYTES = 2**20
MAX_LISTED_FILES = 1000  # of one part: a list that goes on without end is not read on
# Words in the name of a licence that forbids commercial use, or that only the model card describes.
RESTRICTED = {"nc", "noncommercial", "commercial", "research", "other"}
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

Progress = Callable[[str, int, int], None]  # file, bytes so far, bytes in all


class HubError(RuntimeError):
    """A failed download: the message names the file, what happened, and what can be done."""

    __module__ = "salt.io.hub"


def models_folder() -> Path:
    """The default target of `pull`: $SALT_MODELS, or `salt/models` in the user's cache folder."""
    if chosen := os.environ.get("SALT_MODELS"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "salt" / "models"


def known_parts(names: Sequence[str]) -> list[Part]:
    """The parts of these names. Raises `HubError` for an unknown one, and for none."""
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise HubError(f"unknown part {', '.join(unknown) or '(none given)'}; there are {', '.join(PARTS)}")
    return [PARTS[name] for name in names]


@dataclass(frozen=True)
class Licence:
    """The licence of a part. text: what is known here, and what the model card says now. restricted: whether it may
    forbid uses, so that someone has to accept it first."""

    text: str
    restricted: bool


def licence_of(part: Part, endpoint: str | None = None, revision: str = "main") -> Licence:
    """Raises `HubError` where the hub does not answer."""
    api = HfApi(endpoint=endpoint)
    with _as_hub_error(part.where, api):
        card = api.model_info(part.repo, revision=revision).card_data
    given = None if card is None else card.get("license_name") or card.get("license")
    name = ", ".join(given) if isinstance(given, list) else str(given or "none")
    words = re.split(r"[^a-z]+", name.lower())
    restricted = part.restricted or not RESTRICTED.isdisjoint(words)
    return Licence(f"{part.licence}; the model card says: {name[:80]}", restricted)


def pull(
    parts: Sequence[str],
    target: str | Path | None = None,
    *,
    endpoint: str | None = None,
    revision: str = "main",
    progress: Progress | None = None,
) -> list[Path]:
    """Download the named `PARTS`; returns the files, each at target / <repository's name> / <its path there>.

    Files that are already there and have the right hash are kept. An interrupted download is resumed, by this call or a
    later one. endpoint: URL of the hub; by default $HF_ENDPOINT or the public one. `progress(file, bytes so far, bytes
    in all)` is called as bytes arrive; without it the hub library shows its own bars.

    Raises `HubError` for an unknown part, no connection, a missing or gated repository, a missing file, a full disk,
    or content with a wrong hash (it is deleted, and an older file at the destination stays).
    """
    chosen = known_parts(parts)
    target = models_folder() if target is None else Path(target)
    api = HfApi(endpoint=endpoint)
    with _hub_bars_disabled(progress is not None):
        return [
            _download(api, part.repo, commit, file, target, progress)
            for part in chosen
            for commit, file in _list_files(api, part, revision)
        ]


def _list_files(api: HfApi, part: Part, revision: str) -> list[tuple[str, RepoFile]]:
    """(commit, file) of a part's files, all at the commit that `revision` points to now."""
    what = part.where
    with _as_hub_error(what, api):
        commit = api.model_info(part.repo, revision=revision).sha or revision
        tree = api.list_repo_tree(part.repo, part.folder or None, recursive=part.whole, revision=commit)
        listed = islice(tree, MAX_LISTED_FILES)
        files = [file for file in listed if isinstance(file, RepoFile) and isinstance(file.path, str)]
    chosen = [file for file in files if any(fnmatch(Path(file.path).name, name) for name in part.names)]
    if not chosen:
        existing = ", ".join(Path(file.path).name for file in files) or "nothing"
        raise HubError(f"{what} on the hub has no {' or '.join(part.names)}; it has {existing}")
    for file in chosen:
        _check_entry(file, part)
    return [(commit, file) for file in chosen]


def _digest(file: RepoFile) -> tuple[str, str]:
    """Kind and value of the hash that the hub lists for a file."""
    return ("sha256", file.lfs.sha256) if file.lfs else ("git", file.blob_id)


def _check_entry(file: RepoFile, part: Part) -> None:
    """Raise HubError for an entry of the hub's list that is no file of this part, or lacks its size or hash."""
    where, inside = part.where, f"{part.folder}/" if part.folder else ""
    try:
        local_path(Path(part.folder), file.path.removeprefix(inside))
    except ValueError as error:
        raise HubError(f"{where}: {error}; it was not downloaded") from None
    digest = _digest(file)[1]
    if not file.path.startswith(inside):
        raise HubError(f"{where}: the hub lists {file.path!r:.100}, expected files of that folder")
    if not isinstance(file.size, int) or file.size < 0 or not isinstance(digest, str) or not HASH.fullmatch(digest):
        raise HubError(
            f"{file.path}: the hub lists size {file.size!r:.30}, hash {digest!r:.70}; expected a size and a hash"
        )


def _check_disk(file: RepoFile, folder: Path, present: int) -> None:
    """Raise HubError where the disk has less room than the rest of the file takes."""
    free = shutil.disk_usage(folder).free
    if file.size - present > free:
        raise HubError(f"{file.path}: needs {file.size - present:,} bytes in {folder}, {free:,} are free")


def _download(api: HfApi, repo: str, commit: str, file: RepoFile, target: Path, progress: Progress | None) -> Path:
    kind, digest = _digest(file)
    destination = target / repo.rpartition("/")[2] / file.path  # checked by _check_entry
    if destination.is_file() and destination.stat().st_size == file.size and _hash(destination, kind) == digest:
        if progress:
            progress(file.path, file.size, file.size)
        return destination
    # The name contains the hash, so that a partial download of another version is never resumed.
    partial = destination.with_name(f".{destination.name}.{digest[:12]}.part")
    with _as_hub_error(f"{repo}/{file.path}", api):
        destination.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(file, destination.parent, partial.stat().st_size if partial.exists() else 0)
        try:
            _complete(hf_hub_url(repo, file.path, revision=commit, endpoint=api.endpoint), api, file, partial, progress)
        finally:
            if partial.exists() and not partial.stat().st_size:
                partial.unlink()
        received = _hash(partial, kind)
        if received != digest:
            partial.unlink()
            raise HubError(
                f"{repo}/{file.path}: the download has the {kind} hash {received}, the hub lists {digest}. It was "
                f"deleted; pull again"
            )
        replace_file(partial, destination)
    return destination


def _complete(url: str, api: HfApi, file: RepoFile, partial: Path, progress: Progress | None) -> None:
    """Append to `partial` the bytes of the file that are missing."""
    with _ProgressWriter(partial, file, progress) as out:
        size = out.tell()
        if size > file.size:
            out.truncate(size := 0)
        http_get(
            url,
            out,
            resume_size=size,
            headers=build_hf_headers(token=api.token),
            expected_size=file.size,
            displayed_filename=file.path,
        )


class _ProgressWriter(io.BufferedWriter):
    """A file opened for appending that reports its size after every write, and takes no more than the hub listed."""

    def __init__(self, path: Path, entry: RepoFile, progress: Progress | None) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self.entry, self.progress = entry, progress

    def write(self, data: Buffer, /) -> int:
        if self.tell() + memoryview(data).nbytes > self.entry.size:
            raise HubError(f"{self.entry.path}: the hub sends more than the {self.entry.size:,} bytes that it lists")
        written = super().write(data)
        if self.progress:
            self.progress(self.entry.path, self.tell(), self.entry.size)
        return written


def _hash(path: Path, kind: str) -> str:
    """sha256 of a large (LFS) file; git's blob hash, which includes the length, of a small one."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _hub_bars_disabled(disable: bool) -> Iterator[None]:
    """Context in which the hub library shows no progress bars, if `disable`."""
    if not disable or are_progress_bars_disabled(HUB_PROGRESS_BAR):
        yield
        return
    disable_progress_bars(HUB_PROGRESS_BAR)
    try:
        yield
    finally:
        enable_progress_bars(HUB_PROGRESS_BAR)


@contextmanager
def _as_hub_error(what: str, api: HfApi) -> Iterator[None]:
    """Context that turns every exception of the hub library into a `HubError` that says what to do."""
    try:
        yield
    except HubError:
        raise
    except GatedRepoError as error:
        raise HubError(
            f"{what}: the repository is gated; log in with an account that has accepted its terms (`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{what}: the hub at {api.endpoint} has no such repository, or it is private") from error
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise HubError(f"{what}: the hub at {api.endpoint} has no such file or revision") from error
    except HfHubHTTPError as error:
        raise HubError(f"{what}: the hub at {api.endpoint} answered: {error}") from error
    except Exception as error:
        # The library's HTTP client, and with it the exceptions for a lost connection, differ between versions.
        reason = f"{type(error).__name__}: {error}"
        raise HubError(
            f"{what}: could not be fetched from {api.endpoint} ({reason}). The part that arrived is kept: pull again "
            f"to go on"
        ) from error
