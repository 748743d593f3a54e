"""The adversarial stage: its losses, which model learns from which, its rollout modes, and resuming a killed run."""

import math
from dataclasses import replace

import pytest
import torch

from salt.checkpoints import load_student, save_diffusers
from salt.conditioning import Conditioning
from salt.models.word_embedder import WordEmbedder
from salt.rope import rotary_table
from tests.helpers import tiny_recipes
from train.adversarial.pairs import WEIGHT_TEMPERATURE, adversarial_term, clip_gradient
from train.evaluation.sampling import student_clips
from train.experiments.tiny.adversarial import (
    REPLAY_SIZE,
    AdversarialStage,
    AdversarialTrainer,
    add_pair_noise,
    train_adversarial,
)
from train.experiments.tiny.build import SPEC
from train.experiments.tiny.compiled_forward import hidden
from train.experiments.tiny.discriminator import Discriminator
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.rollout_modes import (
    FIRST_BLOCKS_PER_BATCH,
    rollout_first_block,
    whole_clip_recipe,
)
from train.losses import discriminator_loss, generator_adversarial_loss, gradient_penalty
from train.rollout.late_window import rollout_window
from train.rollout.random_draws import UpdateDraws
from train.shapes.world import SCENES

FRAMES = 3
EVEN = torch.full((FRAMES,), 1 / FRAMES)
SHORT = AdversarialStage(warmup=3, steps=3, frames=FRAMES, ema=0.9, compiled=False)
WHOLE, FIRST_BLOCK, LATE = range(3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student and a teacher on disk, and latents. Real clips are constant, which no student generates from noise."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        save_diffusers(tiny_recipes.model(seed, num_layers=4), root / name)
    (root / "latents").mkdir()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 16, 1, 1, 1, generator=generator).expand(8, 16, FRAMES + 1, 8, 8).half()
    torch.save({"latents": latents.clone(), "scenes": torch.arange(8)}, root / "latents/0000.pt")
    return root


@pytest.fixture
def trainer(models):
    recipe = whole_clip_recipe(str(models / "teacher"), 0, FRAMES, 3.0)
    text_SLD = Latents(models / "latents").text_SLD
    trainer = AdversarialTrainer(models / "student", models / "teacher", recipe, text_SLD, "cpu", compiled=False)
    trainer.optimizers["discriminator"].param_groups[0]["lr"] = 5e-3  # at the real rate it would need many steps
    return trainer


def real_clips(models):
    shard = torch.load(models / "latents/0000.pt", weights_only=True)
    return shard["latents"][:, :, :FRAMES].float(), shard["scenes"]


def a_step(models, trainer, mode, count, warmup=True):
    """The count-th step of a mode, on the same real clips each time."""
    real, scenes = real_clips(models)
    step = count * len(trainer.modes) + mode
    return trainer.step(step, real, scenes, warmup, torch.Generator().manual_seed(step))


def test_losses_are_ln_2_for_equal_logits_and_their_gradients_have_opposite_signs():
    same = torch.zeros(4, FRAMES, requires_grad=True)
    loss = discriminator_loss(torch.zeros(4, FRAMES), same, EVEN)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert (same.grad > 0).all()  # the discriminator lowers the logits of fake clips
    same.grad = None
    generator_adversarial_loss(torch.zeros(4, FRAMES), same, EVEN, WEIGHT_TEMPERATURE).backward()
    assert (same.grad < 0).all()  # the student raises them
    assert discriminator_loss(torch.full((1, FRAMES), 5.0), torch.zeros(1, FRAMES), EVEN) < 0.01


def test_clips_that_are_detected_most_clearly_count_most():
    real = torch.zeros(4, FRAMES)
    fake = torch.tensor([[0.0], [-2.0], [-4.0], [-8.0]]).expand(4, FRAMES).clone().requires_grad_(True)

    def pulls(temperature):
        (gradient,) = torch.autograd.grad(generator_adversarial_loss(real, fake, EVEN, temperature), fake)
        return -gradient.sum(1) / torch.sigmoid(-fake[:, 0].detach())

    torch.testing.assert_close(pulls(2.0), torch.softmax(torch.tensor([0.0, 1.0, 2.0, 4.0]), 0))
    torch.testing.assert_close(pulls(1e6), torch.full((4,), 0.25), atol=1e-5, rtol=0)


def test_gradients_are_mixed_in_their_ratio_and_dmd_acts_on_scored_frames_only():
    fake = torch.zeros(2, 1, FRAMES, 1, 1, requires_grad=True)
    adversarial, scores = torch.tensor([5.0, 0, 0]), torch.tensor([0.3, 0, 0.4])

    def of(by_frame):
        return (fake * by_frame[:, None, None]).sum()

    scored_F = torch.tensor([0.0, 1, 1])
    expected = torch.tensor([6.0 * 0.5, 0, 0.4])
    found = clip_gradient(fake, of(adversarial), of(scores), 6.0, scored_F)
    torch.testing.assert_close(found[:, 0, :, 0, 0], expected.expand(2, 3))


def test_gradient_penalty_is_the_squared_slope():
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


def test_every_weight_of_the_discriminator_learns_but_the_unused_output_head():
    discriminator = Discriminator(tiny_recipes.model(0, num_layers=4))
    clips, text = torch.randn(2, 16, FRAMES, 8, 8), WordEmbedder().encode([scene.caption for scene in SCENES[:2]])
    sigma = torch.tensor([0.1, 0.4])
    assert discriminator(clips, sigma, text).shape == (2, FRAMES) and not discriminator(clips, sigma, text).any()
    torch.nn.init.normal_(discriminator.head.head[2].weight)
    discriminator(clips, sigma, text).sum().backward()
    still = {name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {"body.scale_shift_table", "body.proj_out.weight", "body.proj_out.bias"} | {
        name
        for name in still
        if name.endswith("to_k.bias")  # softmax does not see a shift
    }


def test_warmup_trains_the_discriminator_alone_and_the_students_step_leaves_it_unchanged(models, trainer):
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    losses = [a_step(models, trainer, WHOLE, count)["discriminator"] for count in range(8)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[-1] < 0.6
    assert all(torch.equal(value, before[name]) for name, value in trainer.student.state_dict().items())

    before_step = [p.clone() for p in trainer.discriminator.parameters()]
    optimizer = trainer.optimizers["discriminator"]
    optimizer.step = lambda: None  # any change now would come from the student's step
    values = a_step(models, trainer, WHOLE, 8, warmup=False)
    assert values["adversarial"] > math.log(2) and math.isfinite(values["dmd"])
    assert any(not torch.equal(value, before[name]) for name, value in trainer.student.state_dict().items())
    assert all(torch.equal(p, was) for p, was in zip(trainer.discriminator.parameters(), before_step, strict=True))
    assert [p.requires_grad for p in trainer.discriminator.body.blocks.parameters()].count(False) == 0


def test_the_adversarial_gradient_makes_clips_more_real(models, trainer):
    """A step along the gradient of a trained discriminator raises the logits of fake clips."""
    for count in range(8):
        a_step(models, trainer, WHOLE, count)
    mode = trainer.modes[WHOLE]
    pairs = mode.replay[-1]
    pairs.fake.requires_grad_(True)
    noisy = add_pair_noise(pairs, trainer.text_SLD[pairs.scenes], torch.Generator().manual_seed(0))
    logits = trainer.discriminator(noisy.fake, noisy.sigma, noisy.text)
    (gradient,) = torch.autograd.grad(adversarial_term(trainer.discriminator, noisy, mode.weight_F), noisy.fake)
    moved = trainer.discriminator(noisy.fake - 0.5 * gradient / gradient.abs().amax(), noisy.sigma, noisy.text)
    assert moved.mean() > logits.mean()


@pytest.mark.parametrize("steps", [2, 4])
def test_first_blocks_equal_the_engines_and_every_evaluation_has_gradient(trainer, steps):
    student, recipe = trainer.student, trainer.modes[FIRST_BLOCK].recipe
    text, choices = trainer.text_SLD[:2], UpdateDraws(recipe.schedule(steps), 0, None, 1.0)
    flows = []

    def flow(*arguments, **options):
        flows.append(student(*arguments, **options)[0])
        flows[-1].retain_grad()
        return (flows[-1],)

    x0 = rollout_first_block(flow, Conditioning(text), recipe, choices, [5, 6], gradient=True).x0
    expected = student_clips(student, text, steps, FRAMES, 5, SPEC)
    torch.testing.assert_close(x0.detach(), expected, atol=1e-4, rtol=0)
    x0.sum().backward()
    assert len(flows) == steps and all(one.grad.any() for one in flows)


def test_late_windows_end_a_long_clip_whose_past_took_all_its_steps(trainer, monkeypatch):
    """With the exit at the last step it equals the sampler's clip; an earlier exit changes the window only."""
    student, recipe = trainer.student, trainer.modes[LATE].recipe
    recipe = replace(recipe, optimisation=replace(recipe.optimisation, precision="fp32"))
    text, frames = Conditioning(trainer.text_SLD[:2]), recipe.rollout.frames
    expected = student_clips(student, text.text, 4, frames, 5, SPEC)

    def window(exit_index):
        choices = UpdateDraws(recipe.schedule(4), exit_index, None, 1.0)
        return rollout_window(student, text, recipe, choices, [5, 6], start=frames - FRAMES, masked=0, gradient=True)

    last = window(3)
    assert last.x0.shape[2] == FRAMES and last.x0.requires_grad
    torch.testing.assert_close(last.x0.detach(), expected[:, :, -FRAMES:], atol=1e-4, rtol=0)

    timesteps = []
    call = student.forward
    monkeypatch.setattr(
        student, "forward", lambda *inputs, **options: timesteps.append(inputs[1]) or call(*inputs, **options)
    )
    early = window(0)
    assert not torch.allclose(early.x0, last.x0, atol=1e-2)
    assert len(timesteps) > 2 * 4 and len(early.exits.flows) == 1  # two blocks of past, four evaluations each


def test_every_mode_has_its_turn_and_the_student_learns_from_each(models, trainer):
    for mode in (WHOLE, FIRST_BLOCK, LATE):
        a_step(models, trainer, mode, 0)
        before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
        values = a_step(models, trainer, mode, 1, warmup=False)
        assert any(not torch.equal(value, before[name]) for name, value in trainer.student.state_dict().items())
        assert values["norm"] > 0 and not trainer.modes[mode].replay[-1].fake.requires_grad
    assert trainer.modes[FIRST_BLOCK].recipe.optimisation.batch == FIRST_BLOCKS_PER_BATCH
    assert trainer.modes[LATE].late and not trainer.modes[WHOLE].late


def test_late_latents_leave_the_first_frame_out(tmp_path):
    clips = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(4, 16, 5, 8, 8).half()
    torch.save({"latents": clips.clone(), "scenes": torch.arange(4)}, tmp_path / "0000.pt")
    data, generator = Latents(tmp_path), torch.Generator().manual_seed(0)
    first, _ = data.draw(6, 3, generator)
    assert first[:, 0, :, 0, 0].tolist() == [[0, 1, 2]] * 6
    late, _ = data.draw(40, 3, generator, late=True)
    assert {tuple(row) for row in late[:, 0, :, 0, 0].tolist()} == {(1, 2, 3), (2, 3, 4)}


def test_replay_is_bounded_and_separate_for_each_mode(models, trainer, monkeypatch):
    monkeypatch.setattr("train.experiments.tiny.adversarial.REPLAY_SIZE", 2)
    for count in range(3):
        a_step(models, trainer, WHOLE, count)
    a_step(models, trainer, FIRST_BLOCK, 0)
    assert [len(mode.replay) for mode in trainer.modes] == [2, 1, 0] and REPLAY_SIZE > 2


def test_a_killed_run_resumes_bit_exactly(models, tmp_path, monkeypatch):
    arguments = (models / "student", models / "teacher", models / "latents", SHORT)
    whole = train_adversarial(tmp_path / "whole", *arguments)
    with tiny_recipes.dying(monkeypatch):
        for _ in range(SHORT.warmup + SHORT.steps):
            with pytest.raises(KeyboardInterrupt):
                train_adversarial(tmp_path / "broken", *arguments)
    broken = train_adversarial(tmp_path / "broken", *arguments)
    assert whole.read_bytes() == broken.read_bytes()
    start, end = (load_student(path, dtype=torch.float32).state_dict() for path in (models / "student", whole))
    assert any(not torch.equal(end[name], value) for name, value in start.items())
    assert train_adversarial(tmp_path / "whole", *arguments) == whole  # a finished run is not repeated
