"""The speed table: measured cells are saved one by one, a failing cell does not stop the others."""

import json

import torch

from benchmarks import training
from benchmarks.__main__ import as_table, measure
from benchmarks.cells import CPU, GPU, Bench, Cell, training_speed
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.planning.arithmetic import forward_flops


class Stub(Bench):
    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.measured_ceilings = {"flops": 1e12, "bytes": 1e10}


def cell(name, measure):
    return Cell(name, "fps", "frames/s", ">= 1", measure)


def test_an_interrupted_run_continues(tmp_path):
    path, calls = tmp_path / "cpu.json", []

    def slow(bench):
        calls.append("slow")
        return {"fps": 5.0, "of_matmul": 0.5}

    def broken(bench):
        calls.append("broken")
        raise RuntimeError("out of memory\nmore")

    cells = (cell("one", slow), cell("two", broken), cell("three", slow))
    results = measure(cells, Stub(), path, again=False)
    assert calls == ["slow", "broken", "slow"]
    table = as_table((*cells, cell("four", slow)), results)
    assert "| one | 5 frames/s | >= 1 | 50% |  |" in table and "| two | failed: RuntimeError: out of memory |" in table
    assert "| four | not measured yet |" in table and "matmul 1 TFLOP/s" in table
    measure(cells, Stub(), path, again=False)
    assert calls[3:] == ["broken"], "only cells without a figure are measured again"
    measure(cells, Stub(), path, again=True)
    assert calls[4:] == ["slow", "broken", "slow"]


def test_a_skipped_cell_is_measured_later(tmp_path):
    answers = iter([{"skipped": "not set"}, {"fps": 5.0}])
    cells = (cell("one", lambda bench: next(answers)),)
    measure(cells, Stub(), tmp_path / "cpu.json", again=False)
    assert measure(cells, Stub(), tmp_path / "cpu.json", again=False)["cells"]["one"]["fps"] == 5.0


def test_training_that_runs_out_of_memory_names_the_case(tmp_path, monkeypatch):
    """`measure_training` then returns a case without a figure, and no ratio."""
    cases = {"plain / input": {"error": "out of memory"}, "ours / attention": {"seconds": 1.0, "peak_mib": 1.0}}
    monkeypatch.setattr(training, "measure_training", lambda *arguments, **options: {"cases": cases})
    cells = (Cell("training", "speedup", "x", ">= 1.5", training_speed("1.3B")), cell("next", lambda _: {"fps": 5.0}))
    figures = measure(cells, Stub(), tmp_path / "cpu.json", again=False)["cells"]
    assert figures["training"]["failed"] == "no figure for plain / input (out of memory)"
    assert figures["next"]["fps"] == 5.0


def test_figures_of_another_machine_are_discarded(tmp_path):
    path = tmp_path / "cpu.json"
    cells = (cell("one", lambda bench: {"fps": 5.0}),)
    measure(cells, Stub(), path, again=False)
    saved = json.loads(path.read_text())
    saved["where"]["device"] = "another"
    saved["cells"]["old"] = {"fps": 1.0}
    path.write_text(json.dumps(saved))
    assert list(measure(cells, Stub(), path, again=False)["cells"]) == ["one"]


def test_row_names_are_unique():
    for cells in (CPU, GPU):
        assert len({c.name for c in cells}) == len(cells)


def test_flops_of_the_published_sizes():
    """Figures for Wan 2.1 1.3B at 832x480: a block of 3 frames with 12 and with 21 frames of keys."""
    with torch.device("meta"):
        model = SaltTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)
    for frames, attention in ((12, 16.2e12), (21, 28.3e12)):
        work = forward_flops(model.config, 3 * 1560, frames * 1560, 0)
        assert abs(work["attention"] / attention - 1) < 0.01
        assert abs(work["linear"] / 11.7e12 - 1) < 0.05
