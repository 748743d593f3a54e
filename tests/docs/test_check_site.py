"""The check that the built documentation loads nothing from another host."""

import pytest

from docs.tools.check_site import remote_fetches

REMOTE = {
    "script": '<script src="https://unpkg.com/x.js"></script>',
    "protocol relative": '<script src="//unpkg.com/x.js"></script>',
    "style sheet": '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Roboto">',
    "preconnect": '<link href="https://fonts.gstatic.com" rel="preconnect" crossorigin>',
    "image": '<img src="https://img.shields.io/x.svg">',
    "image set": '<img src="a.png" srcset="a.png 1x, https://host/b.png 2x">',
    "style attribute": '<p style="background: url(https://host/x.png)">',
    "repository widget": '<a data-md-component="source" href="https://github.com/a/b">',
    "diagram": '<pre class="mermaid">graph</pre>',
}
LOCAL = (
    '<script src="assets/x.js"></script><link rel="stylesheet" href="../x.css"><img src="x.png">'
    '<a href="https://arxiv.org/abs/2604.03118">a link to click</a><link rel="canonical" href="https://here/">'
)


@pytest.mark.parametrize("kind", REMOTE)
def test_every_kind_of_fetch_is_found(tmp_path, kind):
    (tmp_path / "page.html").write_text(f"<html>{LOCAL}{REMOTE[kind]}</html>")
    assert len(remote_fetches(tmp_path)) == 1


def test_fonts_in_style_sheets_are_found(tmp_path):
    (tmp_path / "a.css").write_text(
        '@import "https://host/b.css"; @font-face { src: url(//host/c.woff2) url(d.woff2) }'
    )
    assert remote_fetches(tmp_path) == ["a.css: https://host/b.css", "a.css: //host/c.woff2"]


def test_links_and_local_files_are_left_alone(tmp_path):
    (tmp_path / "page.html").write_text(LOCAL)
    (tmp_path / "a.css").write_text("a { background: url(data:image/svg+xml;base64,AAAA) } b { src: url(../x.woff2) }")
    assert remote_fetches(tmp_path) == []
