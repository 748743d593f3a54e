"""The speed table: cells are kept as they are measured, one that fails costs no other, and ceilings are real rates."""

import json

import torch

from benchmarks import training
from benchmarks.__main__ import as_table, measure
from benchmarks.ceilings import forward_flops
from benchmarks.cells import CPU, GPU, Bench, Cell, training_speed
from salt.models.transformer_salt import SaltTransformer3DModel


class Stub(Bench):
    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.known = {"flops": 1e12, "bytes": 1e10}


def cell(name, measure):
    return Cell(name, "fps", "frames/s", ">= 1", measure)


def test_a_run_that_was_ended_goes_on_where_it_was(tmp_path):
    path, calls = tmp_path / "cpu.json", []

    def slow(bench):
        calls.append("slow")
        return {"fps": 5.0, "of_matmul": 0.5}

    def broken(bench):
        calls.append("broken")
        raise RuntimeError("no room\nmore")

    cells = (cell("one", slow), cell("two", broken), cell("three", slow))
    results = measure(cells, Stub(), path, again=False)
    assert calls == ["slow", "broken", "slow"]
    table = as_table((*cells, cell("four", slow)), results)
    assert "| one | 5 frames/s | >= 1 | 50% |" in table and "| two | failed: RuntimeError: no room |" in table
    assert "| four | not measured yet |" in table and "matmul 1 TFLOP/s" in table
    measure(cells, Stub(), path, again=False)
    assert calls[3:] == ["broken"], "only what has no figure is measured again"
    measure(cells, Stub(), path, again=True)
    assert calls[4:] == ["slow", "broken", "slow"]


def test_what_was_skipped_is_measured_when_it_can_be(tmp_path):
    answers = iter([{"skipped": "not set"}, {"fps": 5.0}])
    cells = (cell("one", lambda bench: next(answers)),)
    measure(cells, Stub(), tmp_path / "cpu.json", again=False)
    assert measure(cells, Stub(), tmp_path / "cpu.json", again=False)["cells"]["one"]["fps"] == 5.0


def test_training_that_has_no_room_fails_by_name(tmp_path, monkeypatch):
    """As `measure_training` tells it: a case without a figure, and no ratio."""
    cases = {"plain / input": {"error": "out of memory"}, "ours / attention": {"seconds": 1.0, "peak_mib": 1.0}}
    monkeypatch.setattr(training, "measure_training", lambda *arguments, **options: {"cases": cases})
    cells = (Cell("training", "speedup", "x", ">= 1.5", training_speed("1.3B")), cell("next", lambda _: {"fps": 5.0}))
    found = measure(cells, Stub(), tmp_path / "cpu.json", again=False)["cells"]
    assert found["training"]["failed"] == "no room for plain / input (out of memory)" and found["next"]["fps"] == 5.0


def test_figures_of_another_machine_are_not_mixed_in(tmp_path):
    path = tmp_path / "cpu.json"
    cells = (cell("one", lambda bench: {"fps": 5.0}),)
    measure(cells, Stub(), path, again=False)
    told = json.loads(path.read_text())
    told["where"]["device"] = "another"
    told["cells"]["old"] = {"fps": 1.0}
    path.write_text(json.dumps(told))
    assert list(measure(cells, Stub(), path, again=False)["cells"]) == ["one"]


def test_every_row_has_a_name_of_its_own():
    for cells in (CPU, GPU):
        assert len({c.name for c in cells}) == len(cells)


def test_the_arithmetic_is_that_of_the_published_sizes():
    """memory.md's figures for Wan 2.1 1.3B at 832x480: a block of 3 frames, 12 and 21 frames of keys."""
    with torch.device("meta"):
        model = SaltTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)
    for frames, attention in ((12, 16.2e12), (21, 28.3e12)):
        work = forward_flops(model.config, 3 * 1560, frames * 1560, 0)
        assert abs(work["attention"] / attention - 1) < 0.01
        assert abs(work["linear"] / 11.7e12 - 1) < 0.05
