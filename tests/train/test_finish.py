"""The stage with a judge: what its losses mean, who learns from whom, and that a killed run loses nothing."""

import math
from dataclasses import replace

import pytest
import torch

from salt.checkpoints import load_student, save_diffusers
from salt.conditioning import Conditioning
from salt.models.word_embedder import WordEmbedder
from salt.rope import rotary_table
from tests.helpers import tiny_recipes
from train.evaluation.sampling import student_clips
from train.experiments.tiny.adversarial import (
    EMPHASIS,
    LENGTH,
    REPLAYED,
    WORST,
    Finish,
    Finisher,
    noised,
    pulled,
    train_finish,
)
from train.experiments.tiny.build import SPEC
from train.experiments.tiny.compiled_forward import hidden
from train.experiments.tiny.discriminator import Discriminator
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.rollout_modes import OPENINGS, roll_late, roll_opening, whole_recipe
from train.losses import discriminator_loss, generator_adversarial_loss, gradient_penalty
from train.rollout.random_draws import UpdateDraws
from train.shapes.world import SCENES

FRAMES = 3
EVEN = torch.full((FRAMES,), 1 / FRAMES)
SHORT = Finish(waits=3, steps=3, frames=FRAMES, ema=0.9, compiled=False)
WHOLE, OPENING, LATE = range(3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student and a teacher on disk, and latents: real clips are constants, which no student makes from noise."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        save_diffusers(tiny_recipes.model(seed, num_layers=4), root / name)
    (root / "latents").mkdir()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 16, 1, 1, 1, generator=generator).expand(8, 16, FRAMES + 1, 8, 8).half()
    torch.save({"latents": latents.clone(), "scenes": torch.arange(8)}, root / "latents/0000.pt")
    return root


@pytest.fixture
def learners(models):
    recipe = whole_recipe(str(models / "teacher"), 0, FRAMES, 3.0)
    text_SLD = Latents(models / "latents").text_SLD
    made = Finisher(models / "student", models / "teacher", recipe, text_SLD, "cpu", compiled=False)
    made.optimizers["judge"].param_groups[0]["lr"] = 5e-3  # so small a judge would take long
    return made


def real_clips(models):
    shard = torch.load(models / "latents/0000.pt", weights_only=True)
    return shard["latents"][:, :, :FRAMES].float(), shard["scenes"]


def a_step(models, learners, kind, count, waiting=True):
    """The count-th step of a kind, on the same real clips each time."""
    real, scenes = real_clips(models)
    step = count * len(learners.kinds) + kind
    return learners.step(step, real, scenes, waiting, torch.Generator().manual_seed(step))


def test_a_judge_that_sees_nothing_loses_ln_2_and_the_two_pull_apart():
    same = torch.zeros(4, FRAMES, requires_grad=True)
    loss = discriminator_loss(torch.zeros(4, FRAMES), same, EVEN)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert (same.grad > 0).all()  # the judge lowers the logits of what was made
    same.grad = None
    generator_adversarial_loss(torch.zeros(4, FRAMES), same, EVEN, WORST).backward()
    assert (same.grad < 0).all()  # the student raises them
    assert discriminator_loss(torch.full((1, FRAMES), 5.0), torch.zeros(1, FRAMES), EVEN) < 0.01


def test_the_clips_a_judge_sees_through_most_count_most():
    real = torch.zeros(4, FRAMES)
    made = torch.tensor([[0.0], [-2.0], [-4.0], [-8.0]]).expand(4, FRAMES).clone().requires_grad_(True)

    def pulls(temperature):
        (gradient,) = torch.autograd.grad(generator_adversarial_loss(real, made, EVEN, temperature), made)
        return -gradient.sum(1) / torch.sigmoid(-made[:, 0].detach())

    torch.testing.assert_close(pulls(2.0), torch.softmax(torch.tensor([0.0, 1.0, 2.0, 4.0]), 0))
    torch.testing.assert_close(pulls(1e6), torch.full((4,), 0.25), atol=1e-5, rtol=0)


def test_a_clip_hears_the_judge_six_times_as_loud_as_the_scores_which_speak_only_where_they_are_asked():
    made = torch.zeros(2, 1, FRAMES, 1, 1, requires_grad=True)
    judge, scores = torch.tensor([5.0, 0, 0]), torch.tensor([0.3, 0, 0.4])

    def of(by_frame):
        return (made * by_frame[:, None, None]).sum()

    scored_F = torch.tensor([0.0, 1, 1])
    expected = LENGTH * torch.tensor([EMPHASIS * 0.5, 0, 0.4])
    torch.testing.assert_close(pulled(made, of(judge), of(scores), scored_F)[:, 0, :, 0, 0], expected.expand(2, 3))


def test_smoothness_is_the_squared_slope():
    generator = torch.Generator().manual_seed(0)
    slope = torch.tensor([3.0, 4.0])
    x = torch.randn(20000, FRAMES, 2, generator=generator)
    nudged = x + 0.05 * torch.randn(x.shape, generator=generator)
    assert gradient_penalty(x @ slope, nudged @ slope, 0.05, EVEN).item() == pytest.approx(25, rel=0.05)


def test_hidden_tokens_are_the_models_own():
    model = tiny_recipes.model(0, num_layers=4).requires_grad_(False)
    x, text = torch.randn(2, 16, FRAMES, 8, 8), WordEmbedder().encode([scene.caption for scene in SCENES[:2]])
    t = torch.tensor([300.0, 700.0])
    tokens, _ = hidden(model, x, t[:, None], text, rotary_table(range(FRAMES), 4, 4, 16, "cpu"), None)
    for layer, found in enumerate(tokens):
        assert (found - model.features(x, t, text, layer)).abs().max() < 1e-4


def test_every_weight_of_the_judge_learns_but_the_head_that_is_not_asked():
    judge = Discriminator(tiny_recipes.model(0, num_layers=4))
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
    before = {name: value.clone() for name, value in learners.student.state_dict().items()}
    told = [a_step(models, learners, WHOLE, count)["judge"] for count in range(8)]
    assert told[0] == pytest.approx(math.log(2), abs=1e-3) and told[-1] < 0.6
    assert all(torch.equal(value, before[name]) for name, value in learners.student.state_dict().items())

    judged = [p.clone() for p in learners.judge.parameters()]
    optimizer = learners.optimizers["judge"]
    optimizer.step = lambda: None  # what moves the judge now could only be the student's step
    values = a_step(models, learners, WHOLE, 8, waiting=False)
    assert values["fooling"] > math.log(2) and math.isfinite(values["dmd"])
    assert any(not torch.equal(value, before[name]) for name, value in learners.student.state_dict().items())
    assert all(torch.equal(p, was) for p, was in zip(learners.judge.parameters(), judged, strict=True))
    assert [p.requires_grad for p in learners.judge.body.blocks.parameters()].count(False) == 0


def test_the_adversarial_gradient_makes_clips_more_real(models, learners):
    """Along the gradient alone, of a judge that has learned: the logits of what was made rise."""
    for count in range(8):
        a_step(models, learners, WHOLE, count)
    kind = learners.kinds[WHOLE]
    pairs = kind.replay[-1]
    pairs.made.requires_grad_(True)
    clips, made, sigma = noised(pairs, torch.Generator().manual_seed(0))
    text = learners.text_SLD[pairs.scenes]
    logits = learners.judge(made, sigma, text)
    loss = generator_adversarial_loss(learners.judge(clips, sigma, text), logits, kind.weight_F, WORST)
    (gradient,) = torch.autograd.grad(loss, made)
    moved = learners.judge(made - 0.5 * gradient / gradient.abs().amax(), sigma, text)
    assert moved.mean() > logits.mean()


@pytest.mark.parametrize("steps", [2, 4])
def test_an_opening_is_the_engines_first_block_and_every_evaluation_learns(learners, steps):
    student, recipe = learners.student, learners.kinds[OPENING].recipe
    text, choices = learners.text_SLD[:2], UpdateDraws(recipe.schedule(steps), 0, None, 1.0)
    said = []

    def flow(*arguments, **options):
        said.append(student(*arguments, **options)[0])
        said[-1].retain_grad()
        return (said[-1],)

    x0 = roll_opening(flow, Conditioning(text), recipe, choices, [5, 6], gradient=True).x0
    expected = student_clips(student, text, steps, FRAMES, 5, SPEC)
    torch.testing.assert_close(x0.detach(), expected, atol=1e-4, rtol=0)
    x0.sum().backward()
    assert len(said) == steps and all(one.grad.any() for one in said)


def test_a_late_window_is_the_end_of_a_long_clip_whose_past_took_all_its_steps(learners, monkeypatch):
    """With the exit at the last step it is what the sampler makes; an earlier exit changes the window alone."""
    student, recipe = learners.student, learners.kinds[LATE].recipe
    recipe = replace(recipe, optimisation=replace(recipe.optimisation, precision="fp32"))
    text, frames = Conditioning(learners.text_SLD[:2]), recipe.rollout.frames
    expected = student_clips(student, text.text, 4, frames, 5, SPEC)

    def window(exit_index):
        choices = UpdateDraws(recipe.schedule(4), exit_index, None, 1.0)
        return roll_late(student, text, recipe, choices, [5, 6], gradient=True)

    last = window(3)
    assert last.x0.shape[2] == FRAMES and last.x0.requires_grad
    torch.testing.assert_close(last.x0.detach(), expected[:, :, -FRAMES:], atol=1e-4, rtol=0)

    seen = []
    call = student.forward
    monkeypatch.setattr(student, "forward", lambda *given, **options: seen.append(given[1]) or call(*given, **options))
    early = window(0)
    assert not torch.allclose(early.x0, last.x0, atol=1e-2)
    assert len(seen) > 2 * 4 and len(early.exits.flows) == 1  # two blocks of past, four evaluations each


def test_every_kind_has_its_turn_and_the_student_learns_from_each(models, learners):
    for kind in (WHOLE, OPENING, LATE):
        a_step(models, learners, kind, 0)
        before = {name: value.clone() for name, value in learners.student.state_dict().items()}
        values = a_step(models, learners, kind, 1, waiting=False)
        assert any(not torch.equal(value, before[name]) for name, value in learners.student.state_dict().items())
        assert values["norm"] > 0 and not learners.kinds[kind].replay[-1].made.requires_grad
    assert learners.kinds[OPENING].recipe.optimisation.batch == OPENINGS
    assert learners.kinds[LATE].late and not learners.kinds[WHOLE].late


def test_late_latents_leave_the_first_frame_out(tmp_path):
    clips = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(4, 16, 5, 8, 8).half()
    torch.save({"latents": clips.clone(), "scenes": torch.arange(4)}, tmp_path / "0000.pt")
    data, generator = Latents(tmp_path), torch.Generator().manual_seed(0)
    first, _ = data.draw(6, 3, generator)
    assert first[:, 0, :, 0, 0].tolist() == [[0, 1, 2]] * 6
    late, _ = data.draw(40, 3, generator, late=True)
    assert {tuple(row) for row in late[:, 0, :, 0, 0].tolist()} == {(1, 2, 3), (2, 3, 4)}


def test_what_is_replayed_has_an_end_and_kinds_do_not_mix(models, learners, monkeypatch):
    monkeypatch.setattr("train.experiments.tiny.adversarial.REPLAYED", 2)
    for count in range(3):
        a_step(models, learners, WHOLE, count)
    a_step(models, learners, OPENING, 0)
    assert [len(kind.replay) for kind in learners.kinds] == [2, 1, 0] and REPLAYED > 2


def test_a_killed_run_goes_on_where_it_was(models, tmp_path, monkeypatch):
    arguments = (models / "student", models / "teacher", models / "latents", SHORT)
    whole = train_finish(tmp_path / "whole", *arguments)
    with tiny_recipes.dying(monkeypatch):
        for _ in range(SHORT.waits + SHORT.steps):
            with pytest.raises(KeyboardInterrupt):
                train_finish(tmp_path / "broken", *arguments)
    broken = train_finish(tmp_path / "broken", *arguments)
    assert whole.read_bytes() == broken.read_bytes()
    start, end = (load_student(path, dtype=torch.float32).state_dict() for path in (models / "student", whole))
    assert any(not torch.equal(end[name], value) for name, value in start.items())
    assert train_finish(tmp_path / "whole", *arguments) == whole  # done is done
