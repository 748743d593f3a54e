"""The trainer: bit-exact resume, several processes like one, the terms of the loss, samples, export."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from salt.checkpoints import load_student, read_checkpoint, save_diffusers
from salt.memory import MemoryPolicy
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.spec import TINY_FOLDER, StudentSpec
from tests.helpers import tiny_recipes
from train import models
from train.distributed.checkpointing import CheckpointFolder
from train.distributed.launch import process_state
from train.distributed.offloading import OffloadedModel
from train.distributed.parallel import DistributedModel
from train.evaluation import vbench
from train.export import export
from train.methods.sc_dmd import SCDMDTrainer
from train.models import build_student, export_student, student_facts
from train.monitoring.divergence_guard import Diverged, DivergenceGuard
from train.monitoring.metrics_logger import MEASURED
from train.rollout.random_draws import UpdateDraws
from train.sample_grid import SampleGrid

ROOT = Path(__file__).parents[2]
MAPS = Path("/proc/self/maps")


def curve(folder):
    with (Path(folder) / "losses.csv").open() as file:
        rows = [(int(r["step"]), r["name"], r["value"]) for r in csv.DictReader(file)]
    return [row for row in rows if row[1] not in MEASURED]


def test_resume_continues_to_the_bit(tmp_path):
    whole = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=4), run=dict(out=str(tmp_path / "whole")))
    SCDMDTrainer(whole).run()
    for updates in (2, 4):
        recipe = tiny_recipes.recipe(
            tmp_path, optimisation=dict(updates=updates), run=dict(out=str(tmp_path / "parts"))
        )
        trainer = SCDMDTrainer(recipe)
        assert trainer.run() == updates
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole") and len(curve(tmp_path / "whole")) >= 16
    again = CheckpointFolder(tmp_path / "parts" / "checkpoints", 2).latest()
    unbroken = CheckpointFolder(tmp_path / "whole" / "checkpoints", 2).latest()
    for part in ("student", "critic", "ema"):
        assert all(torch.equal(again[part][k], unbroken[part][k]) for k in unbroken[part]), part
    assert sorted(p.name for p in (tmp_path / "parts" / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


def test_every_term_of_the_loss_reaches_the_student(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    trainer = SCDMDTrainer(recipe)

    def parts(draws):
        batch = trainer.prompts.batch(0, range(2), "generator")
        loss, parts = trainer.generator_loss(batch, draws, 0)
        loss.backward()
        return parts

    schedule = recipe.schedule
    from train.losses.semigroup import grid_triples

    triple = grid_triples(schedule(8), 3)[0][1][0]
    assert set(parts(UpdateDraws(schedule(8), 3, triple, 3.0))) == {"dmd", "semigroup", "semigroup_weight"}
    assert set(parts(UpdateDraws(schedule(4), 0, None, 3.0))) == {"dmd", "align"}
    assert set(parts(UpdateDraws(schedule(2), 1, None, 3.0))) == {"dmd", "align"}


def test_exported_student_is_read_by_the_loaders(tmp_path):
    trainer = SCDMDTrainer(tiny_recipes.recipe(tmp_path, optimisation=dict(updates=1)))
    trainer.run()
    trainer.export(tmp_path / "student.safetensors")
    spec = read_checkpoint(tmp_path / "student.safetensors").spec
    assert spec.frames_per_block == 3 and spec.schedule.nfe == 4
    student = load_student(tmp_path / "student.safetensors", dtype=torch.float32)
    state = trainer.averaged_state()
    for name, value in student.state_dict().items():
        assert torch.equal(value, state[name].bfloat16().float()), name


def test_a_run_whose_first_files_have_gone_is_exported_all_the_same(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    save_diffusers(tiny_recipes.model(1), tmp_path / "student", spec=StudentSpec(fps=24))
    trainer = SCDMDTrainer(recipe)
    for name in ("student", "teacher"):
        shutil.rmtree(tmp_path / name)
    spec = read_checkpoint(export(trainer, 0)).spec
    assert spec is not None and spec.fps == 24 and (tmp_path / "run/export/README.md").is_file()


@pytest.fixture
def process_group():
    """A process group of this process alone, which FSDP needs."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_lora_student_exports_the_unsharded_weights(tmp_path, process_group):
    recipe = tiny_recipes.recipe(tmp_path, models=dict(lora_rank=4))
    student = build_student(recipe, torch.device("cpu"))
    layer = student.blocks[0].attn1.to_q
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    merged = layer.base_layer.weight + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    files = {}
    for mode in ("single", "fsdp"):
        wrapped = DistributedModel(student, mode)
        state = {name: value.clone() for name, value in wrapped.state().items()}
        facts, path = student_facts(recipe, 16), tmp_path / f"{mode}.safetensors"
        export_student(wrapped.model, state, recipe, facts, path, torch.float32)
        files[mode] = load_file(path)
    assert files["fsdp"].keys() == files["single"].keys()
    assert all(torch.equal(value, files["single"][name]) for name, value in files["fsdp"].items())
    torch.testing.assert_close(files["fsdp"]["blocks.0.self_attn.q.weight"], merged.detach())


def test_models_weights_applies_to_the_student_alone(tmp_path, monkeypatch):
    weights_of, real = {}, models.load_student

    def load(path, weights="auto", **options):
        weights_of[Path(path).name] = weights
        return real(path, **options)

    monkeypatch.setattr(models, "load_student", load)
    recipe = tiny_recipes.recipe(tmp_path, models=dict(weights="ema"))
    for build in (build_student, models.build_critic):
        build(recipe, torch.device("cpu"))
    assert weights_of == {"student": "ema", "teacher": "auto"}


def test_bidirectional_and_causal_score_settings_run(tmp_path):
    bidirectional = tiny_recipes.recipe(
        tmp_path, rollout=dict(kind="bidirectional", share={8: 1.0}), loss=dict(align="none"),
        optimisation=dict(updates=1), run=dict(out=str(tmp_path / "b")),
    )  # fmt: skip
    assert SCDMDTrainer(bidirectional).run() == 1
    causal = tiny_recipes.recipe(
        tmp_path,
        loss=dict(score="causal", align="release", semigroup_operator="sampler", semigroup_stop_gradient=False),
        optimisation=dict(updates=1), run=dict(out=str(tmp_path / "c")),
    )  # fmt: skip
    assert SCDMDTrainer(causal).run() == 1


def test_an_offloaded_teacher_creates_masks_on_the_device():
    class Model(torch.nn.Linear):
        def block_causal(self, *_, **__):
            return self.weight.device.type

    for offload, where in ((True, "meta"), (False, "cpu")):
        model = OffloadedModel(SimpleNamespace(model=Model(1, 1)), "meta", offload)
        assert model.block_causal([3], 4, 4, clean_context=True, policy=MemoryPolicy()) == where


@pytest.mark.parametrize("kind", ["autoregressive", "bidirectional"])
def test_samples_do_not_depend_on_the_micro_batch(tmp_path, monkeypatch, kind):
    seen, real = [], SaltTransformer3DModel.forward
    forward = lambda self, x, *rest, **options: seen.append(len(x)) or real(self, x, *rest, **options)  # noqa: E731
    monkeypatch.setattr(SaltTransformer3DModel, "forward", forward)
    results = []
    for micro_batch in (4, 2):
        recipe = tiny_recipes.recipe(
            tmp_path, models=dict(vae=str(TINY_FOLDER / "vae")), rollout=dict(kind=kind), loss=dict(align="none"),
            optimisation=dict(micro_batch=micro_batch), run=dict(sample_prompts=3),
        )  # fmt: skip
        trainer = SCDMDTrainer(recipe)
        samples = SampleGrid(trainer)
        seen.clear()
        results.append((trainer.student.model(samples.clips, 2), samples.defects(trainer)))
        assert max(seen) == min(micro_batch, 3)
    (whole, defects), (parts, again) = results
    assert len(whole) == 3
    torch.testing.assert_close(parts, whole)
    assert again == pytest.approx(defects, rel=1e-4)


def test_the_divergence_guard_stops_and_names_the_checkpoint(tmp_path, monkeypatch):
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(updates=3))
    trainer = SCDMDTrainer(recipe)
    update = trainer.update
    monkeypatch.setattr(trainer, "update", lambda u: {**update(u), **({"dmd": float("nan")} if u == 2 else {})})
    with pytest.raises(Diverged, match="update 3: dmd is nan; stopped, last good checkpoint: step-00000002"):
        trainer.run()


def test_the_divergence_guard_compares_each_norm_with_its_own_history():
    guard = DivergenceGuard(10.0)
    for i in range(20):
        guard.check(i, {"norm": 1.0, "critic_norm": 100.0})
    resumed = DivergenceGuard(10.0)
    resumed.load(guard.state())
    for one in (guard, resumed):
        with pytest.raises(Diverged, match="update 20: gradient norm 11 is over 10 times its median 1"):
            one.check(20, {"norm": 11.0, "critic_norm": 100.0})
        with pytest.raises(Diverged, match="update 20: the critic's gradient norm 1.1e.03 is over 10 times its median"):
            one.check(20, {"norm": 1.0, "critic_norm": 1100.0})


def test_a_critic_that_diverges_ends_the_run(tmp_path, monkeypatch):
    """In any of its updates, not in the last one only."""
    trainer = SCDMDTrainer(tiny_recipes.recipe(tmp_path, optimisation=dict(updates=2)))
    real = trainer.critic.step
    calls = []

    def step(*arguments):
        calls.append(arguments)
        return real(*arguments) if len(calls) != 3 else float("nan")

    monkeypatch.setattr(trainer.critic, "step", step)
    with pytest.raises(Diverged, match="update 2: critic_norm is nan; stopped, last good checkpoint: step-00000001"):
        trainer.run()
    monkeypatch.setattr(trainer, "update_critic", lambda step, warmup: {"critic": step, "critic_norm": 5.0 - step})
    values = trainer.update(1)
    assert (values["critic"], values["critic_mean"], values["critic_norm"]) == (3, 2.5, 3.0)


def test_an_interrupted_write_leaves_the_checkpoint_before(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(1, {"a": {"x": torch.ones(3)}})

    class Unpicklable:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.save(2, {"a": {"x": torch.zeros(3)}, "b": Unpicklable()})
    assert torch.equal(folder.latest()["a"]["x"], torch.ones(3))
    damaged = folder.save(3, {"a": {"x": torch.full((3,), 3.0)}})
    (damaged / "a.pt").write_bytes(b"half")
    assert [p.name for p in folder.complete()] == ["step-00000001"]


@pytest.mark.skipif(not MAPS.exists(), reason="/proc/self/maps is needed")
def test_checkpoints_are_memory_mapped(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(1, {"a": {"x": torch.ones(3)}})
    x = folder.latest()["a"]["x"]
    assert "step-00000001/a.pt" in MAPS.read_text()
    x += 1
    assert torch.equal(folder.latest()["a"]["x"], torch.ones(3)), "the file is unchanged"
    folder.save(2, {"a": {"x": torch.zeros(3)}})
    assert [p.name for p in folder.complete()] == ["step-00000002"] and torch.equal(x, torch.full((3,), 2.0))


def test_the_process_group_has_a_long_timeout(monkeypatch):
    options = {}
    monkeypatch.setattr("train.distributed.launch.PartialState", lambda **given: options.update(given))
    process_state()
    assert options["timeout"] > timedelta(hours=1) and vbench.process_state is process_state


WORKER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.helpers import tiny_recipes
from train.methods.sc_dmd import SCDMDTrainer
folder, mode, updates, out = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
settings = dict(updates=updates, micro_batch=1, precision=sys.argv[5] if len(sys.argv) > 5 else "no")
settings |= dict(shard=int(sys.argv[6])) if len(sys.argv) > 6 else {{}}
recipe = tiny_recipes.recipe(folder, optimisation=settings, run=dict(out=out, save_every=1))
SCDMDTrainer(recipe, mode).run()
"""


def worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT)))
    return str(script)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, precision, processes", [("ddp", "no", 2), ("fsdp", "no", 2), ("fsdp", "bf16", 2), ("fsdp", "no", 4)]
)
def test_several_processes_give_the_losses_of_one(tmp_path, mode, precision, processes):
    """In bfloat16, FSDP rounds norms and modulations as well, so only the first update is compared."""
    tiny_recipes.recipe(tmp_path)
    script = worker(tmp_path)
    updates, close = ("5", dict(rel=1e-5, abs=1e-7)) if precision == "no" else ("1", dict(rel=0.02))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def train(mode, *launcher):
        out = tmp_path / mode
        copies = ["2"] if launcher and processes == 4 else []  # two copies of two shards each
        command = [sys.executable, *launcher, script, str(tmp_path), mode, updates, str(out), precision, *copies]
        subprocess.run(command, check=True, env=environment)
        return curve(out)

    one = train("single")
    two = train(mode, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    assert [r[:2] for r in one] == [r[:2] for r in two] and {r[0] for r in one} == set(range(1, int(updates) + 1))
    for (update, name, a), (_, _, b) in zip(one, two, strict=True):
        assert float(b) == pytest.approx(float(a), **close), (update, name)


@pytest.mark.slow
def test_kill_at_any_moment_and_resume(tmp_path):
    """Ten kills at moments spread over a run that saves at every update; the curve is the unbroken one's."""
    tiny_recipes.recipe(tmp_path)
    script, updates = worker(tmp_path), "12"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, str(tmp_path), "single", updates]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    whole = time.monotonic() - began
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
        try:
            process.wait(timeout=whole * (0.3 + 0.5 * float(torch.rand((), generator=generator))))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    marks = [
        json.loads((p / "complete.json").read_text()) for p in (tmp_path / "killed" / "checkpoints").glob("step-*")
    ]
    assert max(m["update"] for m in marks) == 12
