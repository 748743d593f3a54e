"""The memory estimate against measured bytes, and the error where a device has too little memory."""

import argparse
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from salt.checkpoints import save_diffusers
from salt.rope import cached_rotary_table, rotary_table
from tests.helpers import tiny_recipes
from train.__main__ import main
from train.config.loader import load_recipe
from train.config.model_configs import backbones, meta_model
from train.config.recipe import RecipeError
from train.memory_estimate.allocations import AllocationCounter, without_storage
from train.memory_estimate.command import add_estimate
from train.memory_estimate.estimate import add_up, estimate, estimates, usual_counts
from train.memory_estimate.model_bytes import kv_memory_bytes, optimizer_bytes
from train.memory_estimate.report import check_memory, forms, remedies, table
from train.memory_estimate.tracing import Activations, Tracer
from train.methods.sc_dmd import SCDMDTrainer
from train.rollout.random_draws import UpdateDraws


def larger(folder, **sections):
    """A recipe whose models are large enough that transformer blocks dominate memory, not embeddings."""
    for name in ("student", "teacher"):
        if not (folder / name / "config.json").exists():
            shape = dict(num_attention_heads=8, attention_head_dim=32, ffn_dim=1024, num_layers=5, text_dim=64)
            save_diffusers(tiny_recipes.model(1, **shape), folder / name)
    sections["rollout"] = dict(frames=6, height=16, width=16) | sections.get("rollout", {})
    return tiny_recipes.recipe(folder, **sections)


def saved_bytes(trainer, loss_of):
    """Bytes that autograd saves for backward: every storage once, without weights.

    It does not see what checkpointing keeps besides a block's input, so measured recipes keep the input only.
    """
    models = [learner.model.model for learner in trainer.learners.values()] + [trainer.teacher.wrapped.model]
    ours = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}
    seen = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in ours:
            seen[storage.data_ptr()] = (storage.nbytes(), t)  # kept alive, so that its address is not reused
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss_of().backward()
    return sum(size for size, _ in seen.values())


def embed(trainer):
    """A batch with text embeddings of the models' width instead of the Shapes world's."""
    width = trainer.student.model.model.config.text_dim
    batch = trainer.prompts.batch(0, range(trainer.recipe.optimisation.micro_batch), "generator")
    narrow = [replace(c, text=c.text[..., :width]) for c in (batch.conditioning, batch.negative)]
    return replace(batch, conditioning=narrow[0], negative=narrow[1])


def nbytes(tensors):
    return sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("rank", [0, 4])
def test_weights_equal_those_of_a_real_trainer(tmp_path, rank):
    recipe = tiny_recipes.recipe(tmp_path, models=dict(lora_rank=rank), optimisation=dict(updates=1))
    trainer = SCDMDTrainer(recipe)
    trainer.run()
    found = add_up(recipe, 1, "single", backbones(recipe), Activations())
    for name, learner in trainer.learners.items():
        states = learner.optimizer.state.values()
        assert found.always[f"{name}, float32"] == nbytes(learner.model.model.parameters())
        assert found.always[f"{name}'s optimizer"] == nbytes(t for state in states for t in state.values())
    assert found.always["average (EMA)"] == nbytes(trainer.ema.average.values())
    assert found.always["teacher"] == nbytes(trainer.teacher.wrapped.model.parameters())
    for batch in trainer.micro_batches(trainer.student, 0, "generator"):
        loss, _ = trainer.generator_loss(batch, UpdateDraws(recipe.schedule(2), 1, None, 3.0), 0)
        loss.backward()
    grads = [p.grad for p in trainer.student.model.model.parameters() if p.grad is not None]
    assert found.moments["backward"]["gradients"] == nbytes(grads)


@pytest.mark.parametrize("policy", ["full", "sink:1,window:4", "window:4,int8"])
@pytest.mark.parametrize("precision, dtype", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_kv_memory_equals_an_allocated_one(tmp_path, policy, precision, dtype):
    recipe = tiny_recipes.recipe(tmp_path, rollout=dict(memory=policy), optimisation=dict(precision=precision))
    config = backbones(recipe)["student"]
    memory = tiny_recipes.model(**{k: v for k, v in config.items() if not k.startswith("_")}).to(dtype)
    made = memory.new_memory(recipe.policy, recipe.optimisation.micro_batch, 4, 4, recipe.rollout.frames)
    made.allocated(recipe.rollout.frames)
    assert kv_memory_bytes(recipe, config) == made.nbytes > 0


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(dict(loss=dict(align="none")), marks=pytest.mark.slow),
        pytest.param(dict(loss=dict(align="none"), optimisation=dict(precision="bf16")), marks=pytest.mark.slow),
        pytest.param(dict(loss=dict(align="none"), rollout=dict(window=3)), marks=pytest.mark.slow),
        pytest.param(dict(loss=dict(align="none", semigroup_stop_gradient=False)), marks=pytest.mark.slow),
        pytest.param(dict(loss=dict(align="none"), rollout=dict(kind="bidirectional")), marks=pytest.mark.slow),
        dict(loss=dict(align="paper", align_block=2)),
    ],
)
def test_activations_of_the_generator(tmp_path, settings, checkpointing):
    recipe = larger(tmp_path, models=dict(checkpointing=checkpointing, keep="input"), **settings)
    trainer = SCDMDTrainer(recipe)
    batch = embed(trainer)
    schedule, triple = recipe.schedule(2), None
    if not recipe.loss.semigroup_stop_gradient:
        from train.losses.semigroup import grid_triples

        schedule = recipe.schedule(8)
        triple = grid_triples(schedule, 1)[0][1][0]
    draws = UpdateDraws(schedule, 1, triple, 3.0)
    taken = saved_bytes(trainer, lambda: trainer.generator_loss(batch, draws, 0)[0])
    found = Tracer(recipe, backbones(recipe), False).activations()
    assert found.exits.kept + found.alignment.kept == pytest.approx(taken, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("score", ["bidirectional", "causal"])
def test_activations_of_the_critic(tmp_path, score, checkpointing):
    recipe = larger(
        tmp_path, models=dict(checkpointing=checkpointing, keep="input"), loss=dict(align="none", score=score)
    )
    trainer = SCDMDTrainer(recipe)
    batch = embed(trainer)
    taken = saved_bytes(
        trainer, lambda: trainer.critic_loss(batch, UpdateDraws(recipe.schedule(2), 1, None, 3.0), 0)[0]
    )
    assert Tracer(recipe, backbones(recipe), False).activations().critic.kept == pytest.approx(taken, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["full", "sink:1,window:4"])
def test_a_checkpointed_rollout_keeps_its_kv_memory(tmp_path, policy):
    """Live bytes before backward: exits, and the KV memory from which blocks are recomputed."""
    recipe = larger(tmp_path, loss=dict(align="none"), rollout=dict(memory=policy, frames=12))
    trainer = SCDMDTrainer(recipe)
    batch, configs = embed(trainer), backbones(recipe)
    with AllocationCounter() as live:
        loss, _ = trainer.generator_loss(batch, UpdateDraws(recipe.schedule(2), 1, None, 3.0), 0)
        live.sweep()
    assert loss.requires_grad
    found = add_up(recipe, 1, "single", configs, Tracer(recipe, configs, False).activations())
    moment = found.moments["backward"]
    held = moment["KV memory"] + moment["activations until backward"]
    assert moment["KV memory"] > 0.1 * held
    assert held == pytest.approx(live.now, rel=0.3)


def test_fake_and_real_tables_are_not_mixed():
    for fake in (True, False):
        with without_storage(False) if fake else nullcontext():
            for made in (rotary_table, cached_rotary_table):
                table = made((0, 1, 2), 2, 2, 16, torch.device("cpu"))
                assert isinstance(table.cos, FakeTensor) == fake


@pytest.mark.slow
def test_tracing_leaves_no_fake_table_in_the_caches(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    estimate(recipe)
    assert cached_rotary_table.cache_info().currsize == 0
    trainer = SCDMDTrainer(replace(recipe, optimisation=replace(recipe.optimisation, updates=1)))
    assert trainer.run() == 1


@pytest.mark.slow
def test_more_gpus_need_less_each():
    recipe = load_recipe("self_forcing_salt", ["loss.align=none"])
    one, eight, many = (estimate(recipe, n, "fsdp" if n > 1 else "single") for n in (1, 8, 64))
    assert one.total > eight.total > many.total
    for part in ("student, float32", "student's optimizer", "critic's optimizer", "average (EMA)", "teacher"):
        assert eight.always[part] == pytest.approx(one.always[part] / 8, rel=1e-5)  # and AdamW's step counts
    for found, share in ((eight, 8), (many, 64)):
        expected = one.moments["backward"]["gradients"] / share
        assert found.moments["backward"]["gradients"] == pytest.approx(expected, abs=1)


@pytest.mark.slow
def test_remedies_lower_the_estimate():
    def still(*keys):
        recipe = load_recipe("self_forcing", keys)
        return add_up(recipe, 1, "single", backbones(recipe), Activations())

    base = still()
    smaller = {
        "models.offload=true": "teacher",
        "optimisation.optimizer=8bit": "student's optimizer",
        "models.lora_rank=64": "average (EMA)",
    }
    for key, part in smaller.items():
        assert still(key).always.get(part, 0) < base.always[part] / 2, key
    offloaded = still("models.offload=true")
    assert offloaded.host["teacher"] == offloaded.moments["scores"]["teacher, while it runs"] == base.always["teacher"]
    recipe = load_recipe("self_forcing")
    adapted = estimate(load_recipe("self_forcing", ["models.lora_rank=64"]))
    assert 0 < adapted.moments["backward"]["gradients"] < base.moments["backward"]["gradients"] / 10
    assert adapted.moments["backward"]["activations until backward"] > 2**30
    configs, plain = backbones(recipe), load_recipe("self_forcing", ["models.checkpointing=false"])
    kept = [Tracer(r, configs, False).activations().critic.kept for r in (recipe, plain)]
    assert kept[1] > 20 * kept[0]


def test_every_stage_has_an_estimate(tmp_path):
    distilled = tiny_recipes.recipe(tmp_path)
    for stage in ("ode", "tf"):
        found = estimate(replace(distilled, stage=stage))
        assert not any("critic" in name or "teacher" in name for name in found.always)
        assert found.moments["backward"]["activations until backward"] > 0


def test_too_little_memory_is_an_error_of_one_line(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    need = estimate(recipe).total
    check_memory(recipe, 1, "single", need)
    with pytest.raises(RecipeError) as error:
        check_memory(recipe, 1, "single", 2**30)
    line = str(error.value)
    assert (
        line.startswith(f"GPU memory is too small for small: it needs {need / 2**30:.2f} GiB per GPU (")
        and "found 1.00 GiB" in line
    )
    assert "models.offload=true" in line and "fsdp" in line and "\n" not in line


@pytest.mark.slow
def test_eight_bit_states_are_estimated_in_every_mode(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path)
    assert all("optimisation.optimizer=8bit" in remedies(recipe, mode) for mode in ("single", "ddp", "fsdp"))
    eight = replace(recipe, optimisation=replace(recipe.optimisation, optimizer="8bit"))
    assert [one.mode for one in estimates(eight, (1, 2), ("fsdp", "ddp"))] == ["single", "fsdp", "ddp"]
    # Two weights of 2 x 4096 values: codes, scales, tables and step counts; halves of 4095 stay in float32.
    assert optimizer_bytes([8192] * 2, "8bit", 2) == 2 * (2 * (4096 + 4 * 16 + 4 * 256) + 4)
    assert optimizer_bytes([8190], "8bit", 2) == 2 * 4 * 4095 + 4


@pytest.mark.slow
def test_the_command_prints_a_column_for_each_number_of_gpus(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    parser = argparse.ArgumentParser()
    add_estimate(parser.add_subparsers())
    args = parser.parse_args(["estimate", "self_forcing_salt", "loss.align=none", "--gpus", "1", "8"])
    args.run(args)
    shown = capsys.readouterr().out
    recipe = load_recipe("self_forcing_salt", ["loss.align=none"])
    totals = [estimate(recipe, 1).total, estimate(recipe, 8, "fsdp").total]
    row = next(line for line in shown.splitlines() if " total " in line)
    assert [float(cell) for cell in row.split("│")[2:-1]] == [round(t / 2**30, 2) for t in totals]
    assert table(load_recipe("tiny"), (1,)).row_count > 4


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--gpus", "8", "0"], "--gpus: found 0, expected 1 or more"),
        (["--gpus", "8", "--forms"], "--gpus has no effect with --forms"),
        (
            ["optimisation.sequence=4", "--gpus", "8", "6"],
            "--gpus: found 6, expected multiples of optimisation.sequence=4",
        ),
        (
            ["optimisation.shard=8", "--gpus", "16", "4"],
            "--gpus: found 4, expected multiples of optimisation.shard=8",
        ),
    ],
)
def test_numbers_of_gpus_that_cannot_be_are_errors(options, complaint, capsys):
    assert main(["estimate", "tiny_sc", *options]) == 2
    assert complaint in capsys.readouterr().err


def test_forms_are_those_that_can_run(tmp_path):
    recipe = tiny_recipes.recipe(tmp_path, optimisation=dict(batch=4, micro_batch=2, sequence=4))
    assert {form.processes for form in forms(recipe)} == {8}
    assert {
        form.processes for form in forms(replace(recipe, optimisation=replace(recipe.optimisation, sequence=0)))
    } == {1}


def test_gpus_that_the_batch_does_not_divide_over_are_refused(capsys):
    assert main(["estimate", "longlive2_tf", "--gpus", "2", "8"]) == 2
    assert "--gpus: found 8, expected 1, 2 (over which longlive2_tf's batch of 2 divides)" in capsys.readouterr().err
    assert main(["estimate", "longlive2_tf", "optimisation.sequence=4", "--gpus", "2"]) == 2
    assert "--gpus: found 2, expected multiples of optimisation.sequence=4" in capsys.readouterr().err
    usual = {"self_forcing": [1, 8, 64], "longlive2": [1, 8], "longlive2_tf": [1, 2]}
    assert {name: usual_counts(load_recipe(name)) for name in usual} == usual
    assert usual_counts(load_recipe("longlive2_tf", ["optimisation.sequence=4"])) == [8]


def test_known_sizes_by_hand():
    """Wan 2.1's two transformers, 1.42 and 14.29 billion parameters; 21 latent frames of 1.3B keys and values."""
    found = backbones(load_recipe("self_forcing"))
    sizes = [sum(p.numel() for p in meta_model(found[name]).parameters()) for name in ("student", "teacher")]
    assert sizes == pytest.approx([1.42e9, 14.29e9], rel=2e-3)
    assert kv_memory_bytes(load_recipe("self_forcing"), found["student"]) == 2 * 2 * 30 * 1536 * 1560 * 21
