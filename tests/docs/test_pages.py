"""README and documentation: what they promise exists. Commands parse, imports are public, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from docs.tools import drawings
from salt.cli import parser as salt_parser
from train.__main__ import parser as train_parser
from train.config.loader import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "workflows/README.md")]
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").rglob("*.md"))]
SECTIONS = [
    "Install",
    "Quickstart",
    "What it does",
    "Models",
    "Long video, prompt changes, extension",
    "Live",
    "Memory policies and speed",
    "Training",
    "Status and limits",
    "Troubleshooting",
    "Layout",
    "Contributing, citation, licence",
]
FIRST_SCREEN = 25  # lines


def code_blocks(path: Path, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [text for found, text in blocks if found == language]


def commands(*programs: str) -> list[tuple[str, str]]:
    """(page, arguments) for every call of the programs in a code block of a page, or within a line of the README.

    A call begins with the program, or with what launches it (`torchrun ... -m train`)."""
    launchers = "python|torchrun|accelerate"
    called = re.compile(rf"(?:(?:{launchers}) (?:.* )?)?(?:{'|'.join(map(re.escape, programs))}) (.*)")
    found = []
    for path in PAGES:
        lines = [line for block in code_blocks(path, "") for line in block.replace("\\\n", " ").splitlines()]
        if path == README:
            lines += re.findall(r"`([^`\n]+)`", path.read_text())
        calls = [called.match(line.partition("  #")[0].strip()) for line in lines]
        found += [(path.relative_to(ROOT).as_posix(), call[1]) for call in calls if call]
    return found


def test_the_readme_keeps_its_length_order_and_first_screen():
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == SECTIONS
    first = "\n".join(lines[:FIRST_SCREEN])
    assert "make demo" in first and "make test" in first


@pytest.mark.parametrize("name", ["salt.webp", "live.webp"])
def test_a_moving_picture_moves_and_is_small(name):
    path = ROOT / "docs" / "images" / name
    assert path.stat().st_size < 2_000_000
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) > 40
        assert 800 <= picture.width <= 1000


SALT, TRAIN = commands("salt", "-m salt.cli"), commands("-m train")


@pytest.mark.parametrize(("page", "command"), SALT)
def test_salt_commands_parse(page, command):
    accepts(salt_parser(), shlex.split(command), f"{page}: {command}")


@pytest.mark.parametrize(("page", "command"), TRAIN)
def test_training_commands_parse_and_their_recipes_exist(page, command):
    arguments = accepts(train_parser(), shlex.split(command), f"{page}: {command}")
    recipe = getattr(arguments, "recipe", getattr(arguments, "source", None))
    if recipe is not None and Path(recipe).suffix != ".txt":
        load_recipe(recipe, arguments.overrides)


def accepts(parser, arguments: list[str], where: str) -> Namespace:
    """Fails the test unless the arguments are accepted (or ask for help)."""
    try:
        return parser.parse_args(arguments)
    except SystemExit as stopped:
        assert stopped.code == 0, where
        return Namespace()


def test_commands_are_found_at_all():
    assert len(SALT) > 10 and len(TRAIN) > 15


def test_every_recipe_is_explained():
    table = (ROOT / "docs/training.md").read_text().partition("\n## Recipes\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert not (missing := set(recipe_names()) - named), missing


def test_relative_links_outside_the_site_lead_to_files():
    """MkDocs checks the pages of docs/; these are read on GitHub and in ComfyUI."""
    for path in OUTSIDE:
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text())
        missing = [link for link in links if not (path.parent / link).exists()]
        assert missing == [], path.name


def test_drawings_are_those_of_the_engines_own_policies():
    found = {path.name: path.read_text() for path in drawings.DRAWINGS.glob("*.svg")}
    assert found == drawings.drawings(), "old drawings: python -m docs.tools.drawings"
