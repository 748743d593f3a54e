"""Prompt files: what ends a line, and byte order marks."""

import pytest

from salt.io.prompt_files import read_prompts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_only_universal_newlines_end_a_line(tmp_path, end, encoding):
    lines = ["a red\u2028circle", "a blue\x85square", "a green\x0ctriangle", "a\x1cb\u2029c\x0bd"]
    (tmp_path / "p.txt").write_text(end.join([*lines, "", " "]), encoding=encoding, newline="")
    assert read_prompts(tmp_path / "p.txt") == lines


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "p.txt").write_text("a red circle", encoding="utf-16")
    with pytest.raises(ValueError, match="p.txt: not UTF-8 text .*; expected one prompt per line"):
        read_prompts(tmp_path / "p.txt")
