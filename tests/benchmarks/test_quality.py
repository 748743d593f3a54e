"""The quality table: sizes and means of the rows on long clips."""

import pytest

from benchmarks import quality


def test_long_rows_have_their_size_mean_and_range():
    scores = dict.fromkeys(quality.LONG_SCORES, 0.5)
    rows = {
        f"{policy} at 2 NFE, seed {seed}": scores | {"passed": passed}
        for policy in quality.LONG_POLICIES
        for seed, passed in ((1, 1.0), (2, 0.75))
    }
    table = quality.as_long_table({"prompts": 4, "rows": rows}, [2], [1, 2])
    assert "| relative:3,window:12, 2 | 3.45 | 88% | 50% |" in table and "| 75% to 100% |" in table
    assert "| relative:3,window:12,int4, 2 | 0.97 |" in table
    assert table.endswith("8 clips in each row, 6 rows.")


def test_seeds_belong_to_long_clips(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["quality", "--seeds", "3"])
    with pytest.raises(SystemExit):
        quality.main()
    assert "--seeds: is for --long, the other rows have seed 2000" in capsys.readouterr().err
