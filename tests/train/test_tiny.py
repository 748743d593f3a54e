"""The stages of salt-tiny: the equalities that their shortcuts rely on, and bit-exact resuming."""

import copy

import pytest
import torch

from salt.checkpoints import load_student, save_diffusers
from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.models.streaming_vae import latent_statistics
from salt.models.word_embedder import WordEmbedder
from salt.spec import StudentSpec
from tests.helpers import tiny_recipes as small_models
from train.evaluation.sampling import teacher_clips
from train.experiments.tiny.build import quantize_for_shipping
from train.experiments.tiny.compiled_forward import CompiledForward, _flow
from train.experiments.tiny.latent_dataset import Latents
from train.experiments.tiny.muon import orthogonalize
from train.experiments.tiny.run_state import Run
from train.experiments.tiny.teacher import (
    draw_sigmas,
    flow_matching_loss,
    new_transformer,
    train_teacher,
)
from train.experiments.tiny.teacher_forcing import forcing_loss
from train.experiments.tiny.training_loop import ClipPhase
from train.experiments.tiny.vae import decode, encode, fold_wan_statistics, measured_statistics, new_vae
from train.monitoring.plots import plot_curve
from train.rollout.block_causal import causal_flow
from train.shapes.world import TRAIN_SCENES, render


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = new_vae()
    with torch.no_grad():
        for parameter in vae.parameters():  # move the temporal taps away from zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def student():
    model = new_transformer(0)
    with torch.no_grad():
        model.proj_out.weight.mul_(10)
    return model


@pytest.fixture
def shards(tmp_path):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 16, 21, 8, 8, generator=generator).half()
    torch.save({"latents": latents, "scenes": torch.arange(8)}, tmp_path / "0000.pt")
    return tmp_path


def test_two_call_encode_and_decode_equal_the_vaes(vae):
    pixels = render(TRAIN_SCENES[:1], 13, torch.Generator().manual_seed(0)).pixels
    z = encode(vae, pixels)
    assert (z - vae.encode(pixels).latent_dist.mode()).abs().max() < 1e-5
    assert (decode(vae, z).clamp(-1, 1) - vae.decode(z).sample).abs().max() < 1e-4


def test_folding_gives_wans_statistics_and_keeps_the_pixels():
    torch.manual_seed(1)
    vae = new_vae().requires_grad_(False)
    pixels = render(TRAIN_SCENES[:2], 5, torch.Generator().manual_seed(0)).pixels
    before = decode(vae, encode(vae, pixels))
    fold_wan_statistics(vae, *measured_statistics(vae, clips=4, seed=5))
    mean, std = measured_statistics(vae, clips=4, seed=5)
    want_mean, want_std = (s.flatten() for s in latent_statistics(vae, torch.device("cpu")))
    assert torch.allclose(mean, want_mean, atol=1e-2) and torch.allclose(std, want_std, rtol=1e-2)
    assert (decode(vae, encode(vae, pixels)) - before).abs().max() < 1e-3


def test_teacher_forcing_gradient_reaches_every_block(student):
    x0, text = torch.randn(1, 16, 6, 8, 8), WordEmbedder().encode([TRAIN_SCENES[0].caption])
    loss = forcing_loss(student, x0, text, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss > 0.5 and all(block.attn1.to_k.weight.grad.abs().sum() > 0 for block in student.blocks)
    student.zero_grad()


def test_sampling_a_perfect_teacher_returns_its_clip():
    target = torch.randn(2, 16, 3, 8, 8)

    def perfect(x, timestep, text, *_, **_options):
        return ((x - target) / (timestep.view(-1, 1, 1, 1, 1) / 1000),)

    out = teacher_clips(perfect, torch.zeros(2, 16, 8), steps=10, frames=3, seed=0, spec=StudentSpec(0))
    assert (out - target).abs().max() < 1e-4


def test_most_noise_levels_are_high():
    generator = torch.Generator().manual_seed(0)
    sigmas = draw_sigmas(4000, generator)
    assert 0 < sigmas.min() and sigmas.max() <= 1 and 0.65 < sigmas.mean() < 0.75  # 0.3 * 0.5 + 0.7 * 0.78 = 0.70


def test_a_new_transformer_predicts_its_input():
    """Nearly the right flow at high noise: without this initialisation words are learned late."""
    x = torch.randn(4, 16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (flow,) = new_transformer(0)(x, torch.full((4,), 990.0), torch.zeros(4, 16, 4096), return_dict=False)
    assert (flow - x).square().mean() < 0.1


def test_orthogonalized_matrices_have_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5 and values.max() < 1.5


def test_prompt_dropout_zeroes_whole_prompts(shards):
    data = Latents(shards)
    _, text = data.batch(64, 3, torch.Generator().manual_seed(0), dropout=0.5)
    empty = (text == 0).all(dim=(1, 2))
    assert 16 < empty.sum() < 48 and (text[~empty][:, 5] != 0).all()


def test_missing_latents_are_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        Latents(tmp_path)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_exactly(shards, tmp_path, monkeypatch):
    phases = (ClipPhase(frames=3, batch=2, steps=4, lr=1e-3, lr_end=0.5),)
    train_teacher(tmp_path / "whole", shards, phases)
    with small_models.dying(monkeypatch):
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                train_teacher(tmp_path / "broken", shards, phases)
    train_teacher(tmp_path / "broken", shards, phases)
    whole, broken = ((tmp_path / name / "final/diffusion_pytorch_model.safetensors") for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()


def test_curves_are_plotted(tmp_path):
    run = Run(tmp_path)
    run.log(1, loss=2.0, psnr=20.0)
    run.log(2, loss=1.0, psnr=30.0)
    plot_curve(tmp_path / "curve.csv", tmp_path / "curve.png", "a stage")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_compiled_forward_equals_the_models(student):
    """Run without torch.compile, which compiles the same function."""
    compiled = CompiledForward(student)
    compiled._compiled = _flow
    x, text = torch.randn(2, 16, 9, 8, 8), WordEmbedder().encode(["a fast red circle moving up", ""])
    sigma = torch.rand(2, 9)
    for policy in (MemoryPolicy(), MemoryPolicy("sink", window=6, sink=3)):
        flows = [
            causal_flow(m, x, sigma, Conditioning(text), [3, 3, 3], policy, clean)
            for m in (student, compiled)
            for clean in (x + 1, None)
        ]
        assert (flows[0] - flows[2]).abs().max() < 1e-4 and (flows[1] - flows[3]).abs().max() < 1e-4
    one = torch.rand(2) * 1000
    whole = [m(x, one, text, return_dict=False)[0] for m in (student, compiled)]
    assert (whole[0] - whole[1]).abs().max() < 1e-4
    gradients = [torch.autograd.grad(f.square().mean(), student.blocks[1].attn1.to_q.weight)[0] for f in whole]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[0].abs().max()


def test_uneven_clips_have_one_noise_level_per_three_frames():
    timesteps = []

    def model(x, t, text, return_dict):
        timesteps.append(t)
        return (torch.zeros_like(x),)

    for share, levels in ((0.0, {1}), (1.0, {3})):
        flow_matching_loss(model, torch.zeros(4, 16, 7, 8, 8), torch.zeros(4, 16, 8), torch.Generator(), share)
        assert {len(row.unique()) for row in timesteps.pop()} == levels


def test_float8_weights_load_equal_up_to_rounding(student, tmp_path):
    exact = {name: value.clone() for name, value in student.state_dict().items()}
    save_diffusers(quantize_for_shipping(copy.deepcopy(student)), tmp_path)
    read = load_student(tmp_path, dtype=torch.float32).state_dict()
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 4.5e6
    for name, value in exact.items():
        scale = value.abs().max()
        assert (read[name] - value).abs().max() <= 0.0625 * scale + 0.001, name  # half a step of the smallest
    assert torch.equal(read["proj_out.bias"], exact["proj_out.bias"].half().float())
