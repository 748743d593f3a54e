"""Parsing of timelines: prompts at seconds, as text."""

import pytest

from salt.conditioning import TimedPrompt, parse_timeline


def test_lines_are_prompts_at_seconds():
    text = "a red circle\n\n 3.5 recache: a blue circle: bright\n7s cut : night\n9: day\n10 Recache-Sink: rain"
    assert parse_timeline(text) == (
        TimedPrompt(0.0, "a red circle"),
        TimedPrompt(3.5, "a blue circle: bright", "recache"),
        TimedPrompt(7.0, "night", "cut"),
        TimedPrompt(9.0, "day"),
        TimedPrompt(10.0, "rain", "recache", True),
    )
    shots = parse_timeline("0: one\n2 shot: two\n3s shot: three\n4 s SHOT: four\n5s: five")
    assert [(p.seconds, p.switch) for p in shots[1:]] == [(2, "shot"), (3, "shot"), (4, "shot"), (5, "keep")]
    assert parse_timeline("0: one") == (TimedPrompt(0.0, "one"),)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "found no prompt"),
        ("0: a\nlater: b", "line 2: found 'later: b', expected SECONDS"),
        ("0: a\n2 fade: b", "line 2: found 'fade', expected keep, recache, cut"),
        ("0: a\n3: b\n2: c", "line 3: found 2 s after 3 s"),
        ("2: a", "line 1: found 2 s, expected the first prompt at 0"),
        ("0: a\n3:", "line 2: found no prompt after 3 s"),
        ("0,5: a red circle", "line 1: found the time '0,5', expected seconds from 0 on, as 3.5"),
        ("-1: a red circle", "line 1: found the time '-1', expected seconds"),
        ("0: a\n-2 cut: b", "line 2: found the time '-2', expected seconds"),
        ("0: a\n1.5.2s: b", "line 2: found the time '1.5.2', expected seconds"),
        ("00:05: a red circle", "line 1: found the time '00:05', expected seconds"),
        ("0: a\n1:02.5 recache: b", "line 2: found the time '1:02.5', expected seconds"),
    ],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(ValueError, match=message):
        parse_timeline(text)


def test_only_line_endings_end_a_line():
    text = "0: a\u2028red\x85circle\r\n1: two\x0cthree\r2\uff1a 16:9 picture"
    assert [p.text for p in parse_timeline(text)] == ["a\u2028red\x85circle", "two\x0cthree", "16:9 picture"]
    assert parse_timeline("a cat: 3 kittens, 5: more") == (TimedPrompt(0.0, "a cat: 3 kittens, 5: more"),)
