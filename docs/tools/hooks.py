"""MkDocs hooks: pages that are written when the site is built.

nodes/*.md: a page per ComfyUI node, from its schema (`tests/nodes/schemas.py`) and its help page (`nodes/web/docs`).
reference/*.md: the public names of `salt`, for mkdocstrings to fill from their docstrings.
Raises PluginError where a public name has no page, or a name on a page is not public.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
HELP = ROOT / "nodes" / "web" / "docs"  # NODE.md, and its picture NODE/en.webp

# Page -> its title and the names of `salt.__all__` on it.
REFERENCE: dict[str, tuple[str, list[str]]] = {
    "pipeline": ("Pipeline and files", ["SaltPipeline", "load_student", "save_student", "VideoWriter"]),
    "rollout": (
        "Rollout",
        ["rollout", "RolloutSettings", "Schedule", "SeededNoise", "Conditioning", "PromptChange", "PromptSchedule"],
    ),
    "live": ("Live sessions", ["LiveSession", "LiveSettings", "PipelineHost"]),
    "memory": ("Memory", ["MemoryPolicy", "KVMemory", "save_memory", "load_memory"]),
    "models": (
        "Models and decoding",
        ["CausalModel", "WanStreamDecoder", "TinyStreamDecoder", "encode_video", "semigroup_defect"],
    ),
}


def on_config(config: MkDocsConfig) -> None:
    """Put the node pages into the navigation, by category."""
    pages: dict[str, list[dict[str, str]]] = defaultdict(list)
    for node in node_schemas():
        pages[node["category"].rpartition("/")[2]].append(title_and_page(node))
    for entry in config.nav or []:
        if "Nodes" in entry:
            entry["Nodes"] = [{"All nodes": "nodes/index.md"}, *({name: entries} for name, entries in pages.items())]


def on_files(files: Files, config: MkDocsConfig) -> None:
    pages = {f"nodes/{node['id']}.md": node_page(node) for node in node_schemas()}
    pages["nodes/index.md"] = node_index()
    pages |= {f"reference/{name}.md": reference_page(name) for name in REFERENCE}
    check_reference()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for picture in sorted(HELP.glob("*/en.webp")):
        files.append(File.generated(config, f"nodes/{picture.parent.name}/en.webp", abs_src_path=str(picture)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from docs/ to other files of the repository become links to the repository's page of them."""
    docs = Path(config.docs_dir)
    folder = (docs / page.file.src_uri).parent

    def rewritten(link: re.Match[str]) -> str:
        target = (folder / link[1]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return link[0]  # a page of the site, or a link that leads nowhere, which MkDocs reports
        return f"]({config.extra['repository']}/blob/main/{target.relative_to(ROOT).as_posix()}{link[2] or ''})"

    return re.sub(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)", rewritten, markdown)


@cache
def node_schemas() -> list[dict[str, Any]]:
    """What the node classes say of themselves; from a process of its own, which stands in for ComfyUI's modules."""
    command = [sys.executable, str(ROOT / "tests" / "nodes" / "schemas.py"), "--print"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise PluginError(f"the node schemas cannot be read:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def title_and_page(node: dict[str, Any]) -> dict[str, str]:
    return {node["locale"]["display_name"]: f"nodes/{node['id']}.md"}


def node_page(node: dict[str, Any]) -> str:
    """The help page, and the sockets as a table behind."""
    page = (HELP / f"{node['id']}.md").read_text()
    return "\n".join([page.strip(), "", "## Sockets and widgets", "", *socket_table(node), ""])


def socket_table(node: dict[str, Any]) -> list[str]:
    lines = ["| input | type | default | range or choices | |", "|---|---|---|---|---|"]
    tooltips = node["locale"]["inputs"]
    for slot in node["inputs"]:
        default = "" if slot["default"] is None else f"`{slot['default']!s}`".replace("\n", " / ").replace("``", "")
        kind = slot["type"] + (", optional" if slot["optional"] else "")
        lines.append(f"| `{slot['id']}` | {kind} | {default} | {limits(slot)} | {tooltips[slot['id']]['tooltip']} |")
    if not node["inputs"]:
        lines = []
    outputs = ["", "| output | type | |", "|---|---|---|"]
    for about, slot in zip(node["locale"]["outputs"].values(), node["outputs"], strict=True):
        outputs.append(f"| `{about.get('name', slot['type'])}` | {slot['type']} | {about['tooltip']} |")
    return lines + outputs if node["outputs"] else lines


def limits(slot: dict[str, Any]) -> str:
    if slot["options"]:
        return ", ".join(f"`{option}`" for option in slot["options"])
    if slot["min"] is None or slot["max"] is None:
        return ""
    return f"{slot['min']:g} to {slot['max']:g}" if slot["max"] < 2**53 else f"from {slot['min']:g}"


def node_index() -> str:
    lines = ["# Nodes", "", "All nodes of the pack, by category. The pages are those that ComfyUI shows as help.", ""]
    categories: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for node in node_schemas():
        categories[node["category"]].append(node)
    for category, nodes in categories.items():
        lines += [f"## {category}", "", "| node | |", "|---|---|"]
        for node in nodes:
            description = node["locale"]["description"].replace("\n", " ")
            lines.append(f"| [{node['locale']['display_name']}]({node['id']}.md) | {description} |")
        lines.append("")
    return "\n".join(lines)


def reference_page(page: str) -> str:
    title, names = REFERENCE[page]
    return "\n".join([f"# {title}", "", "From `salt`: `from salt import NAME`.", "", *map(entry, names)])


def entry(name: str) -> str:
    """What mkdocstrings replaces by a public name's signature and docstrings."""
    return f"::: {home_of(name)}.{name}\n"


@cache
def public_modules() -> dict[str, str]:
    """Every public name of `salt` and the module that defines it."""
    import salt

    return {
        name: getattr(getattr(salt, name), "__module__", f"salt.{name}")
        for name in salt.__all__
        if not name.startswith("_")
    }


def home_of(name: str) -> str:
    if name not in public_modules():
        raise PluginError(f"reference: `{name}` is on a page of docs/tools/hooks.py, but is no public name of salt")
    return public_modules()[name]


def check_reference() -> None:
    shown = {name for _, names in REFERENCE.values() for name in names}
    if missing := set(public_modules()) - shown:
        raise PluginError(
            f"reference: {', '.join(sorted(missing))} of salt have no page; docs/tools/hooks.py lists them"
        )
