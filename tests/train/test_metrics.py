"""What a run says while it runs: lines where there is no terminal, the same values in losses.csv, the plot."""

import csv
import io
import re
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from tests.helpers import tiny_recipes
from train.monitoring import metrics_logger
from train.monitoring.metrics_logger import MetricsLogger

VALUES = {"critic": 0.25, "critic_mean": 0.5, "critic_norm": 2.0, "dmd": 0.125, "norm": 1.5, "lr": 1e-05}
THROUGHPUT = SimpleNamespace(values=lambda update, seconds: {"tokens_per_second": 96 / seconds})


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass as the test says."""
    now = [100.0]
    monkeypatch.setattr(metrics_logger.time, "monotonic", lambda: now[0])
    return now


def test_a_run_without_a_terminal_prints_a_line_per_interval(tmp_path, capsys, clock):
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=9))
    with MetricsLogger(recipe, Accelerator(), done=3, throughput=THROUGHPUT) as logger:
        for update in range(4, 10):
            clock[0] += 4
            logger.update(update, VALUES, 3.0)
    first, *lines = [line for line in capsys.readouterr().out.splitlines() if "update" in line]
    assert first.startswith(f"small: updates 4 to 9, into {recipe.run.out} (")
    assert [re.search(r"update (\d+)/9", line)[1] for line in lines] == ["4", "7", "9"]
    assert re.fullmatch(
        r"small: update 7/9, critic 0.25 critic_mean 0.5 critic_norm 2 dmd 0.125 norm 1.5 lr 1e-05 seconds 3 "
        r"tokens_per_second 32 memory_gib [\d.]+, left 0:00:08",
        lines[1],
    )
    with (tmp_path / "run" / "losses.csv").open() as file:
        rows = {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}
    assert {name for _, name in rows} == {*VALUES, "seconds", "tokens_per_second", "memory_gib", "seconds_left"}
    assert rows[7, "seconds"] == 3 and rows[7, "seconds_left"] == 8 and 0.05 < rows[7, "memory_gib"] < 100


def test_a_finished_run_says_so(tmp_path, capsys):
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=9))
    with MetricsLogger(recipe, Accelerator(), done=9, throughput=THROUGHPUT):
        pass
    assert "small: all 9 updates are done; a larger optimisation.updates goes on" in capsys.readouterr().out


@pytest.mark.parametrize("rows", ["", "step,name,value\n", 'step,name,value\n1,"x, y",0.5\n2,dm', "step,name,val"])
def test_a_killed_run_goes_on_from_any_losses_csv(rows, tmp_path):
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=3))
    losses = tmp_path / "run" / "losses.csv"
    losses.parent.mkdir()
    losses.write_text(rows)
    with pytest.raises(ZeroDivisionError, match="the run's own"), MetricsLogger(recipe, Accelerator(), 2, THROUGHPUT):
        raise ZeroDivisionError("the run's own")
    with MetricsLogger(recipe, Accelerator(), done=2, throughput=THROUGHPUT) as logger:
        logger.add(3, {"x, y": 0.25})
    first = ['1,"x, y",0.5'] if "0.5" in rows else []
    assert losses.read_text().splitlines() == ["step,name,value", *first, '3,"x, y",0.25']
    assert losses.with_name("losses.png").exists()


def test_the_plot_is_drawn_while_the_run_goes_on(tmp_path, monkeypatch, clock):
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=9))
    drawn = []
    monkeypatch.setattr(metrics_logger, "plot_curve", lambda curve, out, title: drawn.append(clock[0]))
    with MetricsLogger(recipe, Accelerator(), done=0, throughput=THROUGHPUT) as logger:
        for update in range(1, 5):
            clock[0] += 40
            logger.update(update, VALUES, 3.0)
    assert drawn == [180.0, 260.0, 260.0]


def test_a_terminal_has_a_progress_bar_below_the_lines(tmp_path, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=2))
    with MetricsLogger(recipe, Accelerator(), done=0, throughput=THROUGHPUT) as logger:
        logger.update(1, VALUES, 3.0)
        logger.update(2, VALUES, 3.0)
    assert "small: update 1/2, critic 0.25" in screen.getvalue() and " 2/2 " in screen.getvalue()
