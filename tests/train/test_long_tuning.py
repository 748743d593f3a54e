"""Long tuning by chunks: lengths, streams beside one long rollout, losses on new frames, and runs that resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from salt.conditioning import Conditioning
from salt.models.streaming_vae import WanStreamDecoder, encode_video
from salt.schedule import Schedule
from salt.spec import TINY_FOLDER
from tests.helpers import tiny_recipes
from tests.train.test_trainer import curve
from train.config.recipe import RecipeError
from train.config.validation import check_settings
from train.data.batch import Batch
from train.distill import trainer_of
from train.methods.long_tuning import LongTuningTrainer
from train.methods.sc_dmd import SCDMDTrainer
from train.methods.sc_dmd_losses import critic_term, dmd_term
from train.rollout.gradient_rollout import rollout_with_grad
from train.rollout.random_draws import UpdateDraws
from train.rollout.stream import Stream, chunk_lengths, next_chunk, picture_latent

VAE = str(TINY_FOLDER / "vae")


def stream_recipe(folder, **sections):
    rollout = dict(frames=18, window=6, overlap=3, memory="sink:1,window:7") | sections.pop("rollout", {})
    loss = dict(align="none") | sections.pop("loss", {})
    return tiny_recipes.recipe(folder, rollout=rollout, loss=loss, models=dict(vae=VAE), **sections)


@pytest.mark.parametrize("first", [0, 1])
def test_chunks_fill_a_clip_and_overlap_by_whole_blocks(tmp_path, first):
    recipe = stream_recipe(tmp_path, rollout=dict(frames=240 + first, window=21, independent_first_frame=first == 1))
    drawn = [chunk_lengths(recipe, sequence) for sequence in range(30)]
    assert all(lengths[0] == 21 + first and set(lengths[1:]) == {18, 21} for lengths in drawn)
    assert all(222 + first < sum(lengths) <= 240 + first for lengths in drawn), "no further chunk fits"
    assert len({tuple(lengths) for lengths in drawn}) > 20 and chunk_lengths(recipe, 3) == drawn[3]
    none = replace(recipe, rollout=replace(recipe.rollout, overlap=0))
    assert chunk_lengths(none, 0) == [21 + first] + [21] * 10


@pytest.fixture
def vae():
    return AutoencoderKLWan.from_pretrained(VAE).requires_grad_(False)


def test_a_stream_is_the_clip_that_one_rollout_generates(tmp_path, vae):
    recipe, student = stream_recipe(tmp_path), tiny_recipes.model(3)
    text, draws = Conditioning(torch.randn(2, 5, 4096)), UpdateDraws(Schedule.of(4), 2, None, 3.0)
    whole = rollout_with_grad(student, text, recipe, draws, [1, 2], gradient=False)
    clip = whole.exits.x0(draws.exit_sigma)
    stream, end = Stream(Batch(range(2), text, text), [1, 2]), 0
    for i, new in enumerate((6, 3, 6, 3)):
        result = next_chunk(student, stream, new, recipe, draws, vae, gradient=True)
        end += new
        known = 1 if i else 0  # the first latent of a later chunk is a picture's
        assert result.learned == new and result.x0.shape == (2, 16, 6, 4, 4)
        torch.testing.assert_close(result.x0[:, :, known:], clip[:, :, end - 6 + known : end])
        gradient = torch.autograd.grad(result.x0.square().sum(), student.proj_out.weight, retain_graph=True)[0]
        new_only = torch.autograd.grad(result.x0[:, :, -new:].square().sum(), student.proj_out.weight)[0]
        torch.testing.assert_close(gradient, new_only)
        if i:
            with torch.no_grad():
                pixels = WanStreamDecoder(vae).decode(clip[:1, :, max(end - new - 6, 0) : end - 5])
            torch.testing.assert_close(result.x0[:1, :, :1], encode_video(vae, pixels[:, :, -1:]), atol=1e-5, rtol=1e-5)


def test_the_picture_of_each_clip_is_its_own(vae):
    latents = torch.randn(2, 16, 3, 4, 4)
    both = picture_latent(vae, latents)
    torch.testing.assert_close(both[1:], picture_latent(vae, latents[1:]))
    assert both.shape == (2, 16, 1, 4, 4) and not torch.allclose(both[0], both[1], atol=1e-2)


def test_overlaps_carry_no_loss(tmp_path):
    recipe, model = stream_recipe(tmp_path), tiny_recipes.model(3)
    text = Conditioning(torch.randn(2, 5, 4096))
    batch, draws = Batch(range(2), text, text), UpdateDraws(Schedule.of(4), 2, None, 0.0)
    x0 = torch.randn(2, 16, 6, 4, 4, requires_grad=True)
    loss = dmd_term(model, tiny_recipes.model(4), x0, batch, recipe, draws, 0, 3)
    gradient = torch.autograd.grad(loss, x0)[0]
    assert not gradient[:, :, :3].any() and gradient[:, :, 3:].any()
    whole = torch.autograd.grad(dmd_term(model, tiny_recipes.model(4), x0, batch, recipe, draws, 0), x0)[0]
    torch.testing.assert_close(gradient[:, :, 3:], 2 * whole[:, :, 3:])  # a mean over half of the frames
    parts = [critic_term(model, x0.detach(), batch, recipe, 0, n) for n in (0, 3)]
    assert parts[0] != parts[1]


def test_a_stream_goes_on_over_updates_and_ends_with_a_checkpoint(tmp_path):
    recipe = stream_recipe(tmp_path, run=dict(out=str(tmp_path / "run"), save_every=3))
    trainer = trainer_of(recipe, "single")
    assert isinstance(trainer, LongTuningTrainer)
    ends = []
    for update in range(2):  # two critic chunks and the student's
        trainer.update(update)
        ends.append([stream.memory.next_frame for stream in trainer.streams.values() if stream.memory is not None])
    assert len(set(ends[0])) == len(set(ends[1])) == 1 and len(ends[0]) == 2, "micro-batches are streams in step"
    assert 12 <= ends[0][0] <= 18
    trainer.save(2)
    trainer.begin_chunk(6)
    assert not trainer.streams and trainer.begun == 6
    other = replace(recipe, rollout=replace(recipe.rollout, long_tuning="end"))
    assert type(trainer_of(other, "single")) is SCDMDTrainer


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    def train(out, updates):
        small = dict(updates=updates, batch=1, micro_batch=1, critic_per_generator=1)
        recipe = stream_recipe(
            tmp_path, rollout=dict(share={8: 1.0}), optimisation=small, run=dict(out=str(tmp_path / out), save_every=2)
        )
        trainer_of(recipe, "single").run()
        return curve(Path(recipe.run.out))

    whole = train("whole", 3)
    train("parts", 2)
    assert train("parts", 3) == whole and {row[0] for row in whole} == {1, 2, 3}


@pytest.mark.parametrize(
    "sections, complaint",
    [
        (dict(loss=dict(align="paper")), "loss.align='paper' is not supported by chunks .* or rollout.long_tuning=end"),
        (dict(data=dict(images="starts")), "data.images is not supported by chunks of longer clips"),
        (dict(rollout=dict(window=0, long_tuning="end")), "rollout.long_tuning='end' has no effect on clips of 18"),
    ],
)
def test_what_long_tuning_does_not_have_is_refused(tmp_path, sections, complaint):
    with pytest.raises(RecipeError, match=complaint):
        check_settings(stream_recipe(tmp_path, **sections))
