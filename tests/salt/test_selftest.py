"""`salt selftest`: green here, and red for every kind of fault."""

import json
from functools import partial

import pytest
import torch

from salt.acceleration import attention_backend
from salt.acceleration.cuda_graphs import CUDAGraphTransformer
from salt.acceleration.kernels import trials
from salt.acceleration.kernels.chosen import NO_KERNELS
from salt.cli import main
from salt.memory import MemoryPass, store
from salt.models import async_decoder, attention, streaming_vae
from salt.selftest import fast_paths, kernels, run, speed
from salt.selftest.machine import GOLDEN_POLICIES, Machine, golden
from salt.selftest.outcome import NotRun, Outcome, Row, SelfTestReport, within

CPU = torch.device("cpu")
TINY = speed.StudentSize(heads=2, head_dim=16, ffn=32, layers=2)


def only(monkeypatch, *names):
    """The command runs the checks of these names alone."""
    every = run.checks(CPU)
    chosen = tuple(check for check in every if check.name in names)
    assert len(chosen) == len(names)
    monkeypatch.setattr(run, "checks", lambda device: chosen)


def test_the_command_is_green_here(capsys, tmp_path):
    assert main(["selftest", "--device", "cpu", "-o", str(tmp_path / "a.json")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["trusted"] and report["verdict"] == last and " CPU can be trusted: 8 checks passed" in last
    assert (tmp_path / "a.txt").read_text().splitlines()[-1] == last
    status = {name: check["status"] for name, check in report["checks"].items()}
    assert len(status) == len(run.checks(CPU)) == 26
    assert report["checks"]["CUDA graphs"]["detail"] == "the device is cpu, expected CUDA"
    assert {n for n, s in status.items() if s == "measured"} == {"ceilings", "salt-tiny"}
    assert report["checks"]["golden rollouts, float32"]["figures"]["error"] < 5e-5
    assert report["where"]["torch"].startswith(torch.__version__)


def changed(module, name, change):
    """`module.name` whose result is changed."""
    plain = getattr(module, name)
    return module, name, lambda *args, **options: change(plain(*args, **options))


def without_last_key(q, k, v, backend):
    return attention.dispatch_attention_fn(q, k[:, :-1], v[:, :-1])


FAULTS = {
    "golden rollouts, float32": lambda: (attention, "attend", without_last_key),
    "golden rollouts, bfloat16": lambda: (attention, "attend", without_last_key),
    "int8 memory": lambda: changed(store, "quantise", lambda result: (result[0], result[1] * 1.3)),
    "fp8 memory": lambda: changed(store, "quantise", lambda result: (result[0], result[1] * 1.3)),
    "int4 memory": lambda: changed(store, "quantise", lambda result: (result[0], result[1] * 1.5)),
    "attention sdpa": lambda: (attention_backend, "attend", without_last_key),
    "fused context pass": lambda: (MemoryPass, "attend", swapped_blocks),
    "tiled decode": lambda: changed(fast_paths, "_decoded", lambda x: x + torch.rand_like(x)),
}
plain_attend = MemoryPass.attend


def swapped_blocks(self, *args):
    result = plain_attend(self, *args)
    return result.flip(1) if len(self.segments) > 1 else result


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(monkeypatch, capsys, tmp_path, name):
    only(monkeypatch, name)
    monkeypatch.setattr(*FAULTS[name]())
    assert main(["selftest", "--device", "cpu", "-o", str(tmp_path / "a.json")]) == 2
    err = capsys.readouterr().err
    assert f"CPU cannot be trusted: failed {name}; 0 checks passed" in err and len(err.splitlines()) == 1
    assert json.loads((tmp_path / "a.json").read_text())["checks"][name]["status"] == "failed"


@pytest.fixture
def as_cuda(monkeypatch):
    """Checks of CUDA run on the CPU, where a graph is the function itself and there are no streams."""
    monkeypatch.setattr(fast_paths, "_need_cuda", lambda machine: None)
    monkeypatch.setattr(fast_paths, "CUDAGraphTransformer", partial(CUDAGraphTransformer, record=lambda f: f))
    return monkeypatch


def test_checks_of_cuda_pass_with_stand_ins_and_find_faults(as_cuda):
    machine = Machine(CPU)
    for check in (fast_paths.cuda_graphs, fast_paths.cpu_residence, fast_paths.decoding_stream):
        assert check(machine).status == "passed"
    as_cuda.setattr(fast_paths, "CUDAGraphTransformer", partial(CUDAGraphTransformer, record=lambda f: lambda: f))
    assert run.run_checks(CPU, (run.Check("graphs", fast_paths.cuda_graphs),)).failed, "a graph that does not replay"
    as_cuda.setattr(*changed(async_decoder, "to_uint8", lambda x: x.roll(1, -2)))
    assert fast_paths.decoding_stream(machine).status == "failed"
    clip = machine.clip
    as_cuda.setattr(machine, "clip", lambda model, policy, dtype: clip(model, policy, dtype) * (1 + ("cpu" in policy)))
    assert fast_paths.cpu_residence(machine).status == "failed"


def test_checks_of_kernels_find_faults(monkeypatch):
    """On the CPU, where plain code runs in their place (tests/salt/test_kernels.py compares the kernels)."""
    machine = Machine(CPU)
    check = partial(kernels.kernel, machine, kernels.norm)
    with pytest.raises(NotRun, match="they need an NVIDIA GPU|Triton is not installed"):
        check()
    monkeypatch.setattr(kernels, "why_not", lambda device, dtype: None)
    monkeypatch.setattr(kernels, "TOKENS", 2)
    monkeypatch.setattr(machine, "clip", lambda *args, **options: torch.ones(1))
    assert check().status == kernels.rollouts(machine).status == "passed"
    assert machine.student(torch.float32).kernels == NO_KERNELS, "other checks run without"
    norm = trials.modulated_norm
    monkeypatch.setattr(trials, "modulated_norm", lambda *a: norm(*a) * (1.1 if a[-1] else 1))
    assert check().status == "failed"
    with pytest.raises(ValueError, match="the kernels do not take"):
        kernels.kernel(machine, partial(kernels.memory, precision="int8"))
    monkeypatch.setattr(machine, "clip", lambda student, *args, **options: torch.ones(1) + student.kernels.norm)
    assert kernels.rollouts(machine).status == "failed"


def test_an_error_in_a_check_is_a_failure_and_the_others_run():
    def broken(machine):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    good = run.Check("good", lambda machine: within(0.0, 1.0))
    report = run.run_checks(CPU, (run.Check("broken", broken), good, run.Check("none", run._not_run("no card"))))
    assert [row.outcome.status for row in report.rows] == ["failed", "passed", "not run"]
    assert report.rows[0].outcome.detail == "RuntimeError: CUDA error: no kernel image is available"
    assert "cannot be trusted: failed broken; 1 checks passed, 1 not run" in report.verdict
    assert not run.run_checks(CPU, (run.Check("none", run._not_run("no card")),)).trusted
    assert within(float("nan"), 1.0).status == "failed"
    row = Row("speed", Outcome("measured", "fast"), 0.1)
    assert not SelfTestReport({"device": "x"}, (row,), 0.1).trusted, "nothing was checked"


def test_blocks_of_a_random_student_are_timed(monkeypatch):
    machine = Machine(CPU)
    outcome = speed.wan_blocks(machine, TINY, (4, 4))
    assert outcome.status == "measured" and "attention sdpa" in outcome.detail
    assert outcome.figures["fps"] == pytest.approx(12 * outcome.figures["blocks_per_second"])
    assert "not full" not in outcome.detail
    assert 6.3e9 < speed.planned_peak() < 9e9, "weights 2.8 GB, memory 3.5, and one forward"
    monkeypatch.setattr(speed, "MOST_SECONDS", 0.0)
    assert "window not full after 1 blocks" in speed.wan_blocks(machine, TINY, (4, 4)).detail

    def damaged(*arguments):
        student = made(*arguments)
        student.proj_out.weight.data.fill_(float("nan"))
        return student

    made = speed.random_student
    monkeypatch.setattr(speed, "random_student", damaged)
    with pytest.raises(ValueError, match="not finite"):
        speed.wan_blocks(machine, TINY, (4, 4))


def test_the_packaged_goldens_are_whole():
    tensors = golden()
    assert set(tensors) == set(GOLDEN_POLICIES)
    assert all(t.shape == (1, 16, 15, 8, 8) and t.dtype == torch.float32 for t in tensors.values())
    assert streaming_vae.Tiling(48, 16).size < 64, "tiles are smaller than salt-tiny's frames"
