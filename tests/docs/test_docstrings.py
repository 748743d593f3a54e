"""Docstring fields as lists in the API reference."""

import pytest

pytest.importorskip("griffe", reason="comes with `pip install .[docs]`")

from docs.tools.docstrings import list_fields  # noqa: E402


def test_fields_become_items_and_keep_their_following_lines():
    text = "\nkind: `full` or `window`,\n    or another.\nwindow, sink: frames.\n\nRaises ValueError: never.\n"
    assert list_fields(text) == (
        "\n- **kind**: `full` or `window`,\n    or another.\n- **window, sink**: frames.\n\nRaises ValueError: never.\n"
    )


def test_a_paragraph_before_fields_is_parted_from_them_and_prose_stays():
    assert list_fields("Keys and values.\nwindow: frames.") == "Keys and values.\n\n- **window**: frames."
    assert list_fields("plain prose\nover two lines") == "plain prose\nover two lines"
