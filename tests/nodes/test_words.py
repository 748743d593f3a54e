"""What a person reads of the nodes: a tooltip on every input, a help page and a locale entry in both languages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = Path(__file__).with_name("schemas.py")
DOCS = ROOT / "nodes" / "web" / "docs"
PICTURE = re.compile(r"^!\[([^\]]+)\]\(([^)]+)\)$", re.MULTILINE)  # alternative text, path
PICTURES_LIMIT = 3_000_000  # bytes of all together
NAMES = {
    "1",
    "2",
    "4",
    "8",
    "int8",
    "fp8",
    "int4",
    "fp8_e4m3fn",
    "bf16",
    "fp16",
    "fp32",
}  # choices that no language changes
PARTS = {"en": ("## Inputs", "## Example", "## What goes wrong"), "zh": ("## 输入", "## 示例", "## 常见问题")}


@pytest.fixture(scope="module")
def nodes() -> list[dict[str, Any]]:
    """What `schemas.py` says of every node, from a process of its own."""
    command = [sys.executable, str(SCHEMAS), "--print"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def locale(language: str, name: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def test_the_nodes_are_read_at_all(nodes):
    assert len(nodes) >= 15 and len({n["id"] for n in nodes}) == len(nodes)


def test_every_node_says_what_it_is_and_every_socket_what_it_is_for(nodes):
    for node in nodes:
        assert node["id"].startswith("Salt") and node["category"].startswith("Salt/"), node["id"]
        about = node["locale"]
        assert "Salt" in about["display_name"] and len(about["description"]) > 20 and node["aliases"], node["id"]
        for kind in ("inputs", "outputs"):
            bare = [name for name, slot in about[kind].items() if not slot["tooltip"]]
            assert bare == [], f"{node['id']}: {kind} without a tooltip"


@pytest.mark.parametrize("words", ["rolling", "streaming video", "infinite", "world model", "real time"])
def test_a_search_by_what_people_call_it_finds_the_nodes(nodes, words):
    found = {node["id"] for node in nodes if words in node["aliases"]}
    assert {"SaltRollout", "SaltLive"} <= found and len(found) >= 3


def test_the_english_file_is_what_the_nodes_say(nodes):
    assert locale("en") == {n["id"]: n["locale"] for n in nodes}, (
        "locales/en/nodeDefs.json is old: python tests/nodes/schemas.py writes it anew"
    )


def test_chinese_has_every_node_and_every_socket(nodes):
    chinese = locale("zh")
    assert set(chinese) == {n["id"] for n in nodes}
    for node in nodes:
        there, here = chinese[node["id"]], node["locale"]
        assert re.search(r"[\u4e00-\u9fff]", there["description"]), node["id"]
        assert "Salt" in there["display_name"]
        for kind in ("inputs", "outputs"):
            assert list(there[kind]) == list(here[kind]), f"{node['id']}: {kind} in the nodes' order"
            for name, slot in there[kind].items():
                assert re.search(r"[\u4e00-\u9fff]", slot["tooltip"]), f"{node['id']}: {name}"
        assert all(slot.get("name") for slot in there["inputs"].values())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_word_is_syntax_for_the_frontend(language):
    """vue-i18n takes these for plurals, links and places to fill in."""
    for name in ("main", "nodeDefs"):
        text = json.dumps([*leaves(locale(language, name))], ensure_ascii=False)
        assert not re.search(r"[{}|@]", text), re.findall(r".{20}[{}|@].{20}", text)


def leaves(tree: Any) -> list[str]:
    return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]


def test_chinese_knows_every_word_of_the_front_end():
    scripts = "".join(path.read_text() for path in (ROOT / "nodes" / "web").glob("*.js"))
    direct = set(re.findall(r'\b(?:word|named)\(\s*"([^"]+)",?\s*\)', scripts))
    listed = {"keep", "recache", "cut", "shot", "recache-sink"}
    listed |= {"sink: kept for ever", "window: kept for now"}
    assert all(f'"{word}"' in scripts for word in listed), "the list above is that of the scripts"
    assert set(locale("zh", "main")["salt"]) == direct | listed


def test_chinese_has_every_choice_of_a_list(nodes):
    choices = {option for node in nodes for slot in node["inputs"] for option in slot["options"]} - NAMES
    labels = locale("zh", "main")["saltChoices"]
    assert set(labels) == choices
    assert all(label.endswith(f"（{choice}）") for choice, label in labels.items()), "Chinese, then the value"
    assert all(re.match(r"[\u4e00-\u9fff]", label) for label in labels.values())


def help_page(node: str, language: str) -> Path:
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / "zh.md"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_help_page_shows_its_node(nodes, language):
    for node in nodes:
        ((about, path),) = PICTURE.findall(help_page(node["id"], language).read_text(encoding="utf-8"))
        assert path == f"{node['id']}/{language}.webp", "ComfyUI takes paths from nodes/web/docs, in every language"
        assert len(about) >= 10 and about != node["locale"]["display_name"], node["id"]
        with Image.open(DOCS / path) as picture:
            assert picture.format == "WEBP" and min(picture.size) >= 100, path


def test_the_pictures_of_help_pages_are_small_and_all_shown(nodes):
    pictures = set(DOCS.rglob("*.webp"))
    assert pictures == {DOCS / node["id"] / f"{language}.webp" for node in nodes for language in PARTS}
    assert sum(picture.stat().st_size for picture in pictures) < PICTURES_LIMIT


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_has_a_help_page_that_names_every_input(nodes, language):
    for node in nodes:
        path = help_page(node["id"], language)
        assert path.is_file(), f"{path.relative_to(ROOT)} is missing"
        text = path.read_text(encoding="utf-8")
        about = node["locale"] if language == "en" else locale("zh")[node["id"]]
        assert text.startswith(f"# {about['display_name']}\n"), path.name
        inputs = node["locale"]["inputs"]
        for part in PARTS[language] if inputs else PARTS[language][1:]:
            assert f"\n{part}\n" in text, f"{path.relative_to(ROOT)}: no part {part!r}"
        unnamed = [name for name in inputs if f"`{name}`" not in text]
        assert unnamed == [], f"{path.relative_to(ROOT)} does not name all inputs"


def test_no_help_page_is_left_of_a_node_that_went(nodes):
    known = {n["id"] for n in nodes}
    assert {path.stem for path in DOCS.glob("*.md")} == known
    assert {path.parent.name for path in DOCS.glob("*/zh.md")} == known
