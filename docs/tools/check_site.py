"""`python -m docs.tools.check_site FOLDER`: exit 1 if a page of a built site would load anything from another host.

Looks at what a browser fetches by itself (scripts, styles, fonts, images, frames), in HTML and CSS, and at two features
of the theme that fetch later: the repository widget and Mermaid diagrams. Links that a reader may click are left alone.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

SOURCES = dict.fromkeys(("script", "img", "iframe", "video", "audio", "source", "embed"), "src") | {"object": "data"}
RELATIONS = set("stylesheet icon preload prefetch preconnect dns-prefetch modulepreload manifest".split())
REMOTE = re.compile(r"^(?:https?:)?//", re.IGNORECASE)
IN_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class Fetches(HTMLParser):
    """What one page fetches from other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        url = values.get(SOURCES.get(tag, ""), "")
        if tag == "link" and RELATIONS & set(values.get("rel", "").lower().split()):
            url = values.get("href", "")
        candidates = [url, *(part.strip() for part in values.get("srcset", "").split(","))]
        self.found += [f"<{tag}> {candidate}" for candidate in candidates if REMOTE.match(candidate)]
        self.found += [f"style {remote}" for remote in IN_CSS.findall(values.get("style", ""))]
        if values.get("data-md-component") == "source":
            self.found.append("the repository widget, which asks GitHub")
        if "mermaid" in values.get("class", "").split():
            self.found.append("a Mermaid diagram, whose script is fetched")


def remote_fetches(folder: Path) -> list[str]:
    """`FILE: what it fetches` for every fetch from another host below `folder`."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            page = Fetches()
            page.feed(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(folder)}: {what}" for what in page.found]
        elif path.suffix == ".css":
            urls = IN_CSS.findall(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(folder)}: {url}" for url in urls]
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "index.html").is_file():
        sys.exit(f"{folder} is not a built site: it has no index.html")
    if found := remote_fetches(folder):
        sys.exit("the site loads from other hosts:\n" + "\n".join(found))
    print(f"{folder}: nothing is loaded from another host")


if __name__ == "__main__":
    main()
