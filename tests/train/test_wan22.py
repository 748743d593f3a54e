"""Wan 2.2 TI2V 5B as student, teacher and critic: latents, a given first frame, LongLive 2.0's solver and scores."""

from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from salt import cli
from salt.checkpoints import load_student, read_checkpoint, save_diffusers
from salt.checkpoints.longlive2 import LONGLIVE2
from salt.checkpoints.trained_size import read_size
from salt.conditioning import Conditioning
from salt.io.video_frames import video_info
from salt.models.causal_model import CausalModel
from salt.models.streaming_vae import encode_video
from salt.noise import SeededNoise
from salt.pipeline import SaltPipeline
from salt.pipeline.start_image import start_pixels
from salt.rollout import RolloutSettings, rollout
from salt.schedule import Schedule, add_noise
from tests.helpers import families, tiny_recipes
from train import losses
from train.__main__ import main
from train.config.loader import load_recipe
from train.config.model_configs import backbones, check_backbones
from train.config.recipe import RecipeError
from train.config.validation import check_settings
from train.data.batch import Batch
from train.losses.semigroup import TimestepTriple
from train.memory_estimate.estimate import decoding_bytes
from train.methods import teacher_forcing
from train.methods.sc_dmd_losses import critic_term, dmd_term, score_flow
from train.rollout.block_causal import causal_flow
from train.rollout.gradient_rollout import rollout_with_grad
from train.rollout.random_draws import UpdateDraws

CHANNELS = 48
TEXT = Conditioning(torch.randn(2, 5, 4096, generator=torch.Generator().manual_seed(1)))
FIRST = torch.randn(2, CHANNELS, 1, 4, 4, generator=torch.Generator().manual_seed(2))


def student(seed=1):
    return tiny_recipes.model(seed, in_channels=CHANNELS, out_channels=CHANNELS)


def recipe(folder, **sections):
    """Clips of two blocks of two, their first frame given, by LongLive 2.0's solver and scores."""
    longlive2 = dict(
        rollout=dict(frames=4, frames_per_block=2, share={4: 1.0}, stepping="unipc", gives_first_frame=True),
        loss=dict(semigroup=0.0, align="none", score="causal_noisy", scale_for="block", score_step_for="block"),
    )
    merged = {name: values | sections.pop(name, {}) for name, values in longlive2.items()}
    return tiny_recipes.recipe(folder, **merged, **sections)


@pytest.mark.parametrize("first", [None, FIRST], ids=["from noise", "from a picture"])
def test_a_clip_in_training_is_the_one_that_the_solver_samples(tmp_path, first):
    model, settings = student(), recipe(tmp_path)
    draws = UpdateDraws(settings.schedule(4), 3, None, 3.0)
    result = rollout_with_grad(model, TEXT, settings, draws, [5, 6], gradient=True, first=first)
    memory, noise = model.new_memory(settings.policy, 2, 4, 4, 4), SeededNoise([5, 6], 2, CHANNELS, 4, 4)
    unipc = RolloutSettings(Schedule.of(4, 5.0, "longlive2"), "unipc", 2)
    with torch.no_grad():
        blocks = [*rollout(CausalModel(model), TEXT, memory, noise, 4, unipc, first_frame=first)]
    sampled = torch.cat([b.latents for b in blocks], 2)
    torch.testing.assert_close(result.x0.detach(), sampled, atol=1e-5, rtol=1e-5)
    assert result.learned == (0 if first is None else 3) and result.x0.requires_grad
    early = UpdateDraws(settings.schedule(4), 1, None, 3.0)
    x0 = rollout_with_grad(model, TEXT, settings, early, [5, 6], gradient=False, first=first).x0
    assert not torch.allclose(x0[:, :, 1:], sampled[:, :, 1:], atol=1e-2)


class Watched:
    """A clip model that answers with zeros and keeps what it was called with."""

    def __init__(self):
        self.calls = []
        self.model = student(3)

    def __call__(self, x, timestep, text, image=None, /, *, return_dict, attention_context=None):
        self.calls.append((x, timestep))
        return (torch.zeros_like(x),)

    def block_causal(self, *arguments, **options):
        return self.model.block_causal(*arguments, **options)


def test_scores_keep_the_given_frame_clean_and_draw_a_level_for_every_block(tmp_path):
    settings, critic = recipe(tmp_path), Watched()
    x0 = torch.randn(2, CHANNELS, 4, 4, 4, requires_grad=True)
    batch = Batch(range(2), TEXT, TEXT, first=x0.detach()[:, :, :1])
    draws = UpdateDraws(settings.schedule(4), 2, None, 3.0)
    dmd_term(critic, student(4), x0, batch, settings, draws, 7, learned=3).backward()
    critic_term(critic, x0.detach(), batch, settings, 7, learned=3)
    assert x0.grad is not None and x0.grad[:, :, :1].abs().max() == 0 and x0.grad[:, :, 1:].abs().min() > 0
    for x, t in critic.calls:
        assert torch.equal(x[:, :, 0], x0[:, :, 0]) and not torch.isclose(x[:, :, 1:], x0[:, :, 1:]).any(dim=1).all()
        assert (t[:, 0] == 0).all() and t[:, 1:].min() >= 20 and t[:, 1:].max() <= 980
        assert torch.equal(t[:, 2], t[:, 3]) and not torch.isclose(t[:, 1], t[:, 2]).any()
    noised = replace(settings, loss=replace(settings.loss, score_step_for="clip"))
    critic_term(critic, x0.detach(), batch, noised, 7, learned=3)
    assert (critic.calls[-1][1][:, 1:] == critic.calls[-1][1][:, 1:2]).all()
    critic_term(critic, x0.detach(), replace(batch, first=None), noised, 7)
    assert critic.calls[-1][1].min() > 0


def test_noisy_causal_scores_see_a_past_as_noisy_as_themselves(tmp_path):
    model, settings = student(), recipe(tmp_path)
    clean, noise = torch.randn(2, 2, CHANNELS, 4, 4, 4)
    sigma = torch.tensor([0.3, 0.8])
    x = add_noise(clean, noise, sigma)
    with torch.no_grad():
        found = score_flow(model, x, sigma, TEXT, settings, clean)
        expected = causal_flow(model, x, sigma[:, None].expand(-1, 4), TEXT, [2, 2], settings.policy, None)
        behind_clean = score_flow(
            model, x, sigma, TEXT, replace(settings, loss=replace(settings.loss, score="causal")), clean
        )
    assert torch.equal(found, expected)
    torch.testing.assert_close(found[:, :, :2], behind_clean[:, :, :2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[:, :, 2:], behind_clean[:, :, 2:], atol=1e-3)


def test_every_block_is_divided_by_its_own_distance():
    x0, real, fake = torch.randn(3, 2, CHANNELS, 5, 4, 4)
    gradient = losses.dmd_gradient(x0, real, fake, [2, 3])
    for part in (slice(0, 2), slice(2, 5)):
        scale = (x0 - real)[:, :, part].abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        torch.testing.assert_close(gradient[:, :, part], ((fake - real)[:, :, part] / scale))
    whole = losses.dmd_gradient(x0, real, fake)
    torch.testing.assert_close(losses.dmd_gradient(x0, real, fake, [5]), whole)


def test_the_semigroup_branch_leaves_the_given_frame_alone(tmp_path):
    model = student()
    settings = recipe(tmp_path, rollout=dict(stepping="sde", share={8: 1.0}), loss=dict(semigroup=0.2, score="causal"))
    seen = []
    model.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[1])))
    draws = UpdateDraws(settings.schedule(8), 2, TimestepTriple(750.0, 600.0, 300.0), 3.0)
    exits = rollout_with_grad(model, TEXT, settings, draws, [5, 6], gradient=True, first=FIRST).exits
    direct, composed = exits.endpoints()
    assert direct.shape[2] == composed.shape[2] == 3 and direct.requires_grad and not composed.requires_grad
    middle = [(x, t) for x, t in seen if (t == 600.0).any()]
    assert len(middle) == 2 and (middle[0][1] == torch.tensor([0.0, 600.0])).all() and (middle[1][1] == 600.0).all()
    assert torch.equal(middle[0][0][:, :, :1], FIRST)


def test_a_teacher_forced_clip_s_given_frame_is_clean_and_carries_no_loss(tmp_path, monkeypatch):
    learned = recipe(tmp_path, stage="tf")
    given = replace(learned, start=replace(learned.start, first_frame="given", timestep_weight="none"))
    latents, found = torch.randn(1, CHANNELS, 4, 4, 4), []

    def error(model, latents, history, noise, sigma_BF, *rest):
        found.append(sigma_BF)
        return torch.ones_like(latents) * torch.tensor([100.0, 1.0, 2.0, 3.0])[:, None, None]

    monkeypatch.setattr(teacher_forcing, "teacher_forcing_error", error)
    loss = teacher_forcing.teacher_forcing_loss(student(), latents, TEXT, range(1), given, 0)
    assert loss == 2.0 and found[0][0, 0] == 0 and found[0][0, 1] > 0 and found[0][0, 2] == found[0][0, 3]


def test_from_videos_and_pictures_to_a_video_of_one(tmp_path, capsys, monkeypatch):
    """A small model of the 5B's shape through both stages of LongLive 2.0's recipes for pictures."""
    monkeypatch.setattr("train.distill.check_memory", lambda *_: None)  # takes seconds, and has tests of its own
    monkeypatch.chdir(tmp_path)
    save_diffusers(student(), tmp_path / "Wan2.2-TI2V-5B")
    words = {"dim": 4096, "max_length": 16}
    SaltPipeline(student(), families.vae22(), student=LONGLIVE2, words=words).save_pretrained("parts")
    for folder in ("videos", "pictures"):
        (tmp_path / folder).mkdir()
    iio.imwrite("videos/one.mp4", np.random.default_rng(0).integers(0, 255, (96, 64, 64, 3), np.uint8), fps=24)
    (tmp_path / "videos" / "one.txt").write_text("a red circle\n")
    (tmp_path / "prompts.txt").write_text("a red circle moving right\n")
    Image.new("RGB", (64, 64), "orange").save("pictures/0.png")
    overrides = [
        "models.teacher=Wan2.2-TI2V-5B", "models.critic=Wan2.2-TI2V-5B", "models.text=words", "models.vae=parts/vae",
        "data.negative=", "rollout.height=4", "rollout.width=4", "rollout.frames=16", "optimisation.batch=1",
        "optimisation.updates=1", "optimisation.precision=no", "optimisation.critic_per_generator=1",
        "run.tracker=none", "run.sample_every=0", "run.save_every=0",
    ]  # fmt: skip
    forced = ["longlive2_i2v_tf", "models.student=Wan2.2-TI2V-5B", *overrides]
    assert main(["precompute", *forced, "--videos", "videos"]) == 0
    assert main(["distill", *forced]) == 0
    distilled = ["longlive2_i2v", "data.prompts=prompts.txt", "models.lora_rank=2", "run.sample_every=1", *overrides]
    distilled.remove("run.sample_every=0")
    assert main(["precompute", *distilled, "--images", "pictures"]) == 0
    assert main(["distill", *distilled]) == 0
    assert "dmd" in capsys.readouterr().out
    path = tmp_path / "runs" / "longlive2_i2v" / "export" / "longlive2_i2v.safetensors"
    spec = read_checkpoint(path).spec
    assert spec == LONGLIVE2 and read_size(path) == (64, 64)
    assert load_student(path).config.in_channels == CHANNELS
    command = ["generate", "a red circle moving right", "--model", str(path), "--parts", "parts", "-o", "clip.mp4"]
    assert cli.main([*command, "--image", "pictures/0.png", "--frames", "61"]) == 0
    assert (video_info("clip.mp4", 24).frames, video_info("clip.mp4").fps) == (61, 24)
    pipe = SaltPipeline.from_single_file(path, parts="parts")
    pipe.set_progress_bar_config(disable=True)
    picture = Image.open("pictures/0.png")
    made = pipe("a red circle", image=picture, num_frames=61, height=64, width=64, output_type="latent").latents
    assert made.shape == (1, CHANNELS, 16, 4, 4)
    torch.testing.assert_close(made[:, :, :1], encode_video(pipe.vae, start_pixels(picture, (64, 64), 1)))


def test_the_5b_is_known_by_name():
    for name in ("longlive2", "longlive2_i2v", "longlive2_tf", "longlive2_salt"):
        found = backbones(load_recipe(name))
        sizes = {(c["num_layers"], c["num_attention_heads"], c["ffn_dim"], c["in_channels"]) for c in found.values()}
        assert sizes == {(30, 24, 14336, CHANNELS)}, name
    assert backbones(load_recipe("longlive_streaming"))["student"]["in_channels"] == 16
    reward = load_recipe("longlive2", ["loss.reward=pixels:motion"])
    assert decoding_bytes(reward, CHANNELS)["decoded clip"] == 4 * 3 * (4 * 32 - 3) * (44 * 16) * (80 * 16)


@pytest.mark.parametrize(
    ("base", "overrides", "complaint"),
    [
        ("longlive2", ["loss.semigroup=0.2", "rollout.share={8: 1.0}"], "loss.semigroup: found 0.2 with .*unipc"),
        ("longlive2", ["loss.align=release", "rollout.share={2: 1.0}"], "loss.align: found release with .*unipc"),
        ("longlive2", ["rollout.kind=bidirectional"], "rollout.stepping='unipc' is not supported by bidirectional"),
        ("longlive2_tf", ["stage=ode"], "rollout.stepping='unipc' is not supported by the stage ode"),
        ("longlive2_salt", ["loss.score=causal_noisy"], "loss.align: found release with loss.score=causal_noisy"),
        ("self_forcing", ["loss.score_step_for=block"], "loss.score_step_for: found block, expected clip, or"),
        ("t2v", ["loss.scale_for=block"], "loss.scale_for: found block, expected clip"),
        ("t2v", ["rollout.gives_first_frame=true"], "rollout.gives_first_frame=True is not supported by bidirect"),
        ("longlive2", ["rollout.independent_first_frame=true", "rollout.frames=33"], "gives_first_frame: found true"),
        ("longlive2", ["start.first_frame=given"], "start.first_frame: found given, expected the stage tf"),
    ],
)
def test_what_does_not_go_together_is_refused(base, overrides, complaint):
    with pytest.raises(RecipeError, match=complaint):
        check_settings(load_recipe(base, overrides))


def test_an_autoencoder_of_other_latents_is_refused(tmp_path):
    families.vae22().save_pretrained(tmp_path / "vae")
    with pytest.raises(RecipeError, match="models.vae: found latents of 48 channels in .*, expected the student's 16"):
        check_backbones(load_recipe("self_forcing", [f"models.vae={tmp_path / 'vae'}"]))


def test_a_damaged_configuration_of_an_autoencoder_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"z_dim": "many"}')
    with pytest.raises(RecipeError, match="models.vae cannot be used .*config.json: z_dim: found 'many'"):
        check_backbones(load_recipe("self_forcing", [f"models.vae={tmp_path}"]))
    (tmp_path / "config.json").write_text("{}")
    check_backbones(load_recipe("self_forcing", [f"models.vae={tmp_path}"]))
