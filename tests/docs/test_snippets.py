"""The Python of README and quickstart: it uses public names only, and runs as it stands."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import salt

ROOT = Path(__file__).resolve().parents[2]
README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart" / "python.md"
RELEASED = "from_single_file"  # needs weights that are not here


def snippets(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [README, QUICKSTART], ids=lambda path: path.name)
def test_snippets_import_public_names_only(path):
    imported = [
        node for text in snippets(path) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)
    ]
    assert imported and {node.module for node in imported} == {"salt"}
    assert {alias.name for node in imported for alias in node.names} <= set(salt.__all__)


def test_the_readmes_six_lines_write_a_video(tmp_path, monkeypatch):
    (text,) = snippets(README)
    assert len(text.strip().splitlines()) == 6
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "README.md", "exec"), {})
    assert frames_of(tmp_path / "circle.mp4") == 81


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    texts = [text for text in snippets(QUICKSTART) if RELEASED not in text]
    assert len(texts) > 4
    for text in texts:
        exec(compile(text, "python.md", "exec"), names)
    assert names["block"].stop == 21 and names["pixels"].shape[1] == 3


def frames_of(path: Path) -> int:
    from salt.io.video import read_video

    return read_video(path).shape[2]
