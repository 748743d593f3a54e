"""The stage with a judge: what its losses mean, who learns from whom, and that a killed run loses nothing."""

import math

import pytest
import small
import torch

from salt.checkpoints import load_student, save_diffusers
from salt.rope import rotary_table
from salt.words import WordEmbedder
from train.losses import fooling_loss, judge_loss, smoothness_loss
from train.shapes.world import SCENES
from train.tiny.finish import REPLAYED, Finish, Finisher, finish_recipe, noised, train_finish
from train.tiny.judge import Judge
from train.tiny.latents import Latents
from train.tiny.quick import hidden

FRAMES = 3
EVEN = torch.full((FRAMES,), 1 / FRAMES)
SHORT = Finish(waits=2, steps=2, frames=FRAMES, ema=0.9, compiled=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student and a teacher on disk, and latents: real clips are constants, which no student makes from noise."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        save_diffusers(small.model(seed, num_layers=4), root / name)
    (root / "latents").mkdir()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 16, 1, 1, 1, generator=generator).expand(8, 16, FRAMES, 8, 8).half()
    torch.save({"latents": latents.clone(), "scenes": torch.arange(8)}, root / "latents/0000.pt")
    return root


@pytest.fixture
def learners(models):
    recipe = finish_recipe(models / "teacher", 0, FRAMES, 3.0)
    text_SLD = Latents(models / "latents").text_SLD
    made = Finisher(models / "student", models / "teacher", recipe, text_SLD, "cpu", compiled=False)
    made.optimizers["judge"].param_groups[0]["lr"] = 5e-3  # so small a judge would take long
    return made


def real_clips(models):
    shard = torch.load(models / "latents/0000.pt", weights_only=True)
    return shard["latents"].float(), shard["scenes"]


def test_a_judge_that_sees_nothing_loses_ln_2_and_the_two_pull_apart():
    same = torch.zeros(4, FRAMES, requires_grad=True)
    loss = judge_loss(torch.zeros(4, FRAMES), same, EVEN)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert (same.grad > 0).all()  # the judge lowers the logits of what was made
    same.grad = None
    fooling_loss(torch.zeros(4, FRAMES), same, EVEN).backward()
    assert (same.grad < 0).all()  # the student raises them
    assert judge_loss(torch.full((1, FRAMES), 5.0), torch.zeros(1, FRAMES), EVEN) < 0.01


def test_smoothness_is_the_squared_slope():
    generator = torch.Generator().manual_seed(0)
    slope = torch.tensor([3.0, 4.0])
    x = torch.randn(20000, FRAMES, 2, generator=generator)
    nudged = x + 0.05 * torch.randn(x.shape, generator=generator)
    assert smoothness_loss(x @ slope, nudged @ slope, 0.05, EVEN).item() == pytest.approx(25, rel=0.05)


def test_hidden_tokens_are_the_models_own():
    model = small.model(0, num_layers=4).requires_grad_(False)
    x, text = torch.randn(2, 16, FRAMES, 8, 8), WordEmbedder().encode([scene.caption for scene in SCENES[:2]])
    t = torch.tensor([300.0, 700.0])
    tokens, _ = hidden(model, x, t[:, None], text, rotary_table(range(FRAMES), 4, 4, 16, "cpu"), None)
    for layer, found in enumerate(tokens):
        assert (found - model.features(x, t, text, layer)).abs().max() < 1e-4


def test_every_weight_of_the_judge_learns_but_the_head_that_is_not_asked():
    judge = Judge(small.model(0, num_layers=4))
    clips, text = torch.randn(2, 16, FRAMES, 8, 8), WordEmbedder().encode([scene.caption for scene in SCENES[:2]])
    sigma = torch.tensor([0.1, 0.4])
    assert judge(clips, sigma, text).shape == (2, FRAMES) and not judge(clips, sigma, text).any()
    torch.nn.init.normal_(judge.head[2].weight)
    judge(clips, sigma, text).sum().backward()
    still = {name for name, p in judge.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {"body.scale_shift_table", "body.proj_out.weight", "body.proj_out.bias"} | {
        name
        for name in still
        if name.endswith("to_k.bias")  # softmax does not see a shift
    }


def test_while_it_waits_the_student_stands_still_and_the_judge_comes_to_see(models, learners):
    real, scenes = real_clips(models)
    before = {name: value.clone() for name, value in learners.student.state_dict().items()}
    told = []
    for step in range(8):
        values = learners.step(step, real, scenes, waiting=True, generator=torch.Generator().manual_seed(step))
        told.append(values["judge"])
    assert told[0] == pytest.approx(math.log(2), abs=1e-3) and told[-1] < 0.6
    assert all(torch.equal(value, before[name]) for name, value in learners.student.state_dict().items())

    judged = [p.clone() for p in learners.judge.parameters()]
    optimizer = learners.optimizers["judge"]
    optimizer.step = lambda: None  # what moves the judge now could only be the student's step
    values = learners.step(8, real, scenes, waiting=False, generator=torch.Generator().manual_seed(8))
    assert values["fooling"] > math.log(2) and math.isfinite(values["dmd"])
    assert any(not torch.equal(value, before[name]) for name, value in learners.student.state_dict().items())
    assert all(torch.equal(p, was) for p, was in zip(learners.judge.parameters(), judged, strict=True))
    assert [p.requires_grad for p in learners.judge.body.blocks.parameters()].count(False) == 0


def test_the_adversarial_gradient_makes_clips_more_real(models, learners):
    """Along the gradient alone, of a judge that has learned: the logits of what was made rise."""
    real, scenes = real_clips(models)
    for step in range(8):
        learners.step(step, real, scenes, waiting=True, generator=torch.Generator().manual_seed(step))
    pairs = learners.replay[-1]
    pairs.made.requires_grad_(True)
    clips, made, sigma = noised(pairs, torch.Generator().manual_seed(0))
    text = learners.text_SLD[scenes]
    logits = learners.judge(made, sigma, text)
    (gradient,) = torch.autograd.grad(fooling_loss(learners.judge(clips, sigma, text), logits, learners.weight_F), made)
    moved = learners.judge(made - 0.5 * gradient / gradient.abs().amax(), sigma, text)
    assert moved.mean() > logits.mean()


def test_what_is_replayed_has_an_end(models, learners, monkeypatch):
    real, scenes = real_clips(models)
    monkeypatch.setattr("train.tiny.finish.REPLAYED", 2)
    for step in range(4):
        learners.step(step, real, scenes, waiting=True, generator=torch.Generator().manual_seed(step))
    assert len(learners.replay) == 2 < REPLAYED


def test_a_killed_run_goes_on_where_it_was(models, tmp_path, monkeypatch):
    arguments = (models / "student", models / "teacher", models / "latents", SHORT)
    whole = train_finish(tmp_path / "whole", *arguments)
    with small.dying(monkeypatch):
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                train_finish(tmp_path / "broken", *arguments)
    broken = train_finish(tmp_path / "broken", *arguments)
    assert whole.read_bytes() == broken.read_bytes()
    start, end = (load_student(path, dtype=torch.float32).state_dict() for path in (models / "student", whole))
    assert any(not torch.equal(end[name], value) for name, value in start.items())
    assert train_finish(tmp_path / "whole", *arguments) == whole  # done is done
