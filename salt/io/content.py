"""Keys of caches: what a result was made from, by content and not by position, path or time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

PIECES, PIECE_BYTES = 1024, 8192  # of a large file; evenly spaced, so that none of its larger tensors is missed


def content_key(*parts: object) -> str:
    """A hash of values (paths in them count by name alone), 24 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def path_digest(path: str | Path) -> str:
    """A hash of a file's content, or of the names and contents of a folder's files; "" where there is neither.

    A copy has the digest of its original. Of a file above 8 MiB, its size and evenly spaced pieces are read: a change
    to any tensor larger than a thousandth of the file is seen.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return content_key([(p.relative_to(path).as_posix(), _file_digest(p)) for p in files])
    return _file_digest(path) if path.is_file() else ""


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= PIECES * PIECE_BYTES:
            digest.update(file.read())
        else:
            for piece in range(PIECES):
                file.seek(piece * (size - PIECE_BYTES) // (PIECES - 1))
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()[:24]
