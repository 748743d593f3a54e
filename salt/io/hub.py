"""The house's errand boy: fetches released weights from the model hub, and only when it is sent.

Nothing else in `salt` opens a connection. A file is downloaded beside its place, goes on where an earlier attempt
stopped, is compared with the hash that the hub names, and only then put in place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, cast

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

BAR = "huggingface_hub.http_get"
CHUNK = 2**20

Progress = Callable[[str, int, int], None]


class HubError(RuntimeError):
    """A download that could not be made: the message names the file, what happened, and what can be done."""


@dataclass(frozen=True)
class Part:
    """Something that can be fetched: the files of `folder` in `repo` whose names match one of `names`."""

    about: str
    repo: str
    folder: str
    names: tuple[str, ...] = ("*",)


SALT = "domiso/Salt"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
PARTS = {
    "salt-cf": Part("the released student on Causal Forcing", SALT, "checkpoints", ("salt_cf.pt",)),
    "salt-ll": Part("the released student on LongLive", SALT, "checkpoints", ("salt_ll.pt",)),
    "wan-text-encoder": Part("Wan 2.1's UMT5 text encoder", WAN, "text_encoder"),
    "wan-tokenizer": Part("its tokenizer", WAN, "tokenizer"),
    "wan-vae": Part("Wan 2.1's autoencoder", WAN, "vae"),
    "wan-transformer": Part("Wan 2.1's own T2V 1.3B transformer, for training and comparison", WAN, "transformer"),
}


def models_folder() -> Path:
    """Where `pull` puts things unless told otherwise: $SALT_MODELS, or `salt/models` in the user's cache folder."""
    if chosen := os.environ.get("SALT_MODELS"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "salt" / "models"


def pull(
    parts: Sequence[str],
    target: str | Path | None = None,
    *,
    endpoint: str | None = None,
    revision: str = "main",
    progress: Progress | None = None,
) -> list[Path]:
    """Fetch the named `PARTS` and return the files, each at target / <repository's name> / <its path there>.

    What is there already is checked and kept. An interrupted file is resumed, by this call or a later one.
    `endpoint` is another hub than $HF_ENDPOINT or the public one. `progress(file, bytes so far, bytes in all)` is
    called as bytes arrive; without it the hub library shows its own bars.

    Raises `HubError` for an unknown part, no connection, a missing or closed repository, a missing file, a full disk,
    or content whose hash is not the hub's (it is deleted, and what was in place stays).
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown or not parts:
        raise HubError(f"unknown part {', '.join(unknown) or '(none given)'}; there are {', '.join(PARTS)}")
    target = models_folder() if target is None else Path(target)
    api = HfApi(endpoint=endpoint)
    with _quiet(progress is not None):
        return [
            _fetch(api, PARTS[name].repo, commit, file, target, progress)
            for name in parts
            for commit, file in _listed(api, PARTS[name], revision)
        ]


def _listed(api: HfApi, part: Part, revision: str) -> list[tuple[str, RepoFile]]:
    """The part's files at the commit that `revision` is now, so that all of them belong together."""
    what = f"{part.repo}/{part.folder}"
    with _explained(what, api):
        commit = api.model_info(part.repo, revision=revision).sha or revision
        tree = [
            file for file in api.list_repo_tree(part.repo, part.folder, revision=commit) if isinstance(file, RepoFile)
        ]
    chosen = [file for file in tree if any(fnmatch(Path(file.path).name, name) for name in part.names)]
    if not chosen:
        found = ", ".join(Path(file.path).name for file in tree) or "nothing"
        raise HubError(f"{what} on the hub has no {' or '.join(part.names)}; it has {found}")
    return [(commit, file) for file in chosen]


def _fetch(api: HfApi, repo: str, commit: str, file: RepoFile, target: Path, progress: Progress | None) -> Path:
    kind, digest = ("sha256", file.lfs.sha256) if file.lfs else ("git", file.blob_id)
    place = target / repo.rpartition("/")[2] / file.path
    if place.is_file() and place.stat().st_size == file.size and _hash(place, kind) == digest:
        if progress:
            progress(file.path, file.size, file.size)
        return place
    # The hash in the name: what is left of another version is never resumed.
    partial = place.with_name(f".{place.name}.{digest[:12]}.part")
    with _explained(f"{repo}/{file.path}", api):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(hf_hub_url(repo, file.path, revision=commit, endpoint=api.endpoint), api, file, partial, progress)
        finally:
            if partial.exists() and not partial.stat().st_size:
                partial.unlink()
        found = _hash(partial, kind)
        if found != digest:
            partial.unlink()
            raise HubError(
                f"{repo}/{file.path}: what arrived has the {kind} hash {found}, the hub says {digest}. It was deleted; "
                f"pull again"
            )
        os.replace(partial, place)
    return place


def _download(url: str, api: HfApi, file: RepoFile, partial: Path, progress: Progress | None) -> None:
    """Append to `partial` whatever of the file it does not have yet."""
    with partial.open("ab") as out:
        done = out.tell()
        if done > file.size:
            out.truncate(done := 0)
        http_get(
            url,
            cast(BinaryIO, _Counted(out, file, progress)),
            resume_size=done,
            headers=build_hf_headers(token=api.token),
            expected_size=file.size,
            displayed_filename=file.path,
        )


class _Counted:
    """A file that tells how far it is whenever something is written."""

    def __init__(self, file: BinaryIO, entry: RepoFile, progress: Progress | None) -> None:
        self.file, self.entry, self.progress = file, entry, progress
        self.tell, self.seek, self.truncate = file.tell, file.seek, file.truncate

    def write(self, data: bytes) -> int:
        written = self.file.write(data)
        if self.progress:
            self.progress(self.entry.path, self.file.tell(), self.entry.size)
        return written


def _hash(path: Path, kind: str) -> str:
    """sha256 of a large file's content; git's own blob hash (with its length in front) of a small one's."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """The hub library's own bars are off inside, if `wanted`, and as they were afterwards."""
    if not wanted or are_progress_bars_disabled(BAR):
        yield
        return
    disable_progress_bars(BAR)
    try:
        yield
    finally:
        enable_progress_bars(BAR)


@contextmanager
def _explained(what: str, api: HfApi) -> Iterator[None]:
    """Whatever the hub library raises inside becomes a `HubError` that a person can act on."""
    try:
        yield
    except HubError:
        raise
    except GatedRepoError as error:
        raise HubError(f"{what}: the hub asks for a login that has accepted its terms (`hf auth login`)") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{what}: the hub at {api.endpoint} has no such repository, or shows it to members only"
        ) from error
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise HubError(f"{what}: the hub at {api.endpoint} has no such file or revision") from error
    except HfHubHTTPError as error:
        raise HubError(f"{what}: the hub at {api.endpoint} answered: {error}") from error
    except Exception as error:
        # The library changes its HTTP client between versions, and with it the classes that a lost connection raises.
        reason = f"{type(error).__name__}: {error}"
        raise HubError(
            f"{what}: could not be fetched from {api.endpoint} ({reason}). What has arrived is kept: pull again to "
            f"go on"
        ) from error
