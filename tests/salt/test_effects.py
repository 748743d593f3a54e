"""What must not pass without a word: numbers that are not finite, options out of range, and options without effect."""

import logging
import math

import imageio_ffmpeg
import pytest
import torch

from salt import cli
from salt.acceleration.finite_check import NotFiniteError
from salt.errors import InputError
from salt.models.causal_model import CausalModel
from salt.models.streaming_vae import WanStreamDecoder
from salt.pipeline.effect import changes_past_end
from salt.rollout import RolloutSettings
from salt.schedule import Schedule
from tests.helpers import tiny_system

PROMPT, OTHER = "a fast red circle moving right", "a slow blue square moving up"
CALL = dict(num_frames=21, num_inference_steps=1, seed=0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_system.pipeline()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_system.folder(tmp_path_factory.mktemp("model")))


def generate(model, out, *more):
    arguments = ["generate", PROMPT, "--model", model, "--nfe", 1, "--device", "cpu", "-o", out, *more]
    return cli.main([str(a) for a in arguments])


def nan_from_block(number, monkeypatch):
    """The student computes NaN from this call on; every block is a step and a context pass."""
    call, calls = CausalModel.__call__, []

    def spoilt(self, inputs):
        calls.append(inputs)
        return call(self, inputs) * (math.nan if len(calls) > 2 * number else 1)

    monkeypatch.setattr(CausalModel, "__call__", spoilt)


def test_nan_ends_the_clip_with_the_block_and_keeps_what_was_written(model, tmp_path, capsys, monkeypatch):
    nan_from_block(1, monkeypatch)
    out = tmp_path / "a.mp4"
    assert generate(model, out, "--frames", 33, "--save-memory", tmp_path / "m.safetensors") == 2
    error = capsys.readouterr().err
    assert "block 2 of 3 (latent frames 3 to 5): the student's output is not finite" in error and len(error) < 400
    assert imageio_ffmpeg.count_frames_and_secs(out)[0] == 9 and not (tmp_path / "m.safetensors").exists()


def test_weights_that_are_not_finite_are_named(tmp_path, capsys):
    """One NaN in a query projection: attention on a CPU makes finite numbers of it."""
    broken = tiny_system.pipeline()
    with torch.no_grad():
        broken.transformer.blocks[0].attn1.to_q.weight[0, 0] = math.nan
    with pytest.raises(NotFiniteError, match="transformer: .* blocks.0.attn1.to_q.weight is not finite"):
        broken(PROMPT, **CALL)
    broken.save_pretrained(tmp_path / "system")
    assert generate(str(tmp_path / "system"), tmp_path / "a.mp4", "--frames", 9) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'system'}: the student's weight blocks.0.attn1.to_q.weight is not finite" in error
    assert not (tmp_path / "a.mp4").exists() and error.count("\n") == 1


def test_infinity_ends_a_call_for_latents_too(pipe, monkeypatch):
    nan_from_block(0, monkeypatch)
    for kind in ("latent", "pt"):
        with pytest.raises(NotFiniteError, match="block 1 of 2"):
            pipe(PROMPT, output_type=kind, **CALL)


def test_a_decoder_that_is_not_finite_is_named(pipe, monkeypatch):
    decode = WanStreamDecoder.decode
    monkeypatch.setattr(WanStreamDecoder, "decode", lambda self, x: decode(self, x) * math.inf)
    with pytest.raises(NotFiniteError, match="block 1 of 2 .* the decoder's output is not finite"):
        pipe(PROMPT, **CALL)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_every_float_has_a_range(pipe, value):
    for field, make in {
        "guidance": lambda: RolloutSettings(guidance=value),
        "context_timestep": lambda: RolloutSettings(context_timestep=value),
        "shift": lambda: Schedule(shift=value),
        "steps": lambda: Schedule(steps=(value,)),
        "prompt_schedule": lambda: pipe(PROMPT, prompt_schedule=[(value, OTHER)], **CALL),
        "blend": lambda: pipe(PROMPT, memory_policy=f"blended:3,window:9,blend:{value}", **CALL),
    }.items():
        with pytest.raises(InputError) as found:
            make()
        assert field in str(found.value) or found.value.field in ("policy", "memory_policy")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(negative_prompt=OTHER), "negative_prompt has no effect without guidance"),
        (dict(negative_prompt=["", OTHER]), "negative_prompt has no effect"),
        (dict(negative_prompt_embeds=torch.zeros(1, 1, 4096)), "negative_prompt_embeds has no effect"),
        (dict(prompt_schedule=[(0.75, OTHER, "cut", True)]), "keeps the sink with another switch than recache"),
        (dict(prompt_schedule=[(0.75, OTHER, "recache", True)], memory_policy="window:6"), "window:6 has none"),
        (dict(prompt_schedule=[(60, OTHER)]), "found a change at 60 s, expected one up to 0.75 s"),
        (dict(prompt_schedule=[(0.7, OTHER), (0.9, PROMPT)]), "prompt_schedule: found a change at 1 s"),
    ],
)
def test_options_without_effect_are_refused(pipe, more, message):
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, **CALL, **more)


def test_a_memory_of_the_unconditional_branch_without_guidance_is_refused(pipe):
    made = pipe(PROMPT, guidance_scale=2.0, **CALL)
    with pytest.raises(InputError, match="negative_memory has no effect without guidance"):
        pipe(PROMPT, memory=made.memory, negative_memory=made.negative_memory, **{**CALL, "num_frames": 21})


def test_the_last_change_that_has_an_effect(pipe):
    changes = [3, 4, 6, 7]
    assert changes_past_end(changes, 9, 3) == [7] and changes_past_end(changes, 6, 3) == [4, 6, 7]
    plain = pipe(PROMPT, output_type="latent", **CALL).latents
    changed = pipe(PROMPT, output_type="latent", prompt_schedule=[(0.75, OTHER)], **CALL).latents
    assert not torch.equal(plain[:, :, 3:], changed[:, :, 3:])
    assert pipe(PROMPT, output_type="latent", negative_prompt="", **CALL).latents.equal(plain)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(memory_policy="blended:3,window:9", fuse=True), "fuse has no effect with memory policy blended"),
        (dict(stepping="ode"), "stepping has no effect with one step"),
    ],
)
def test_options_that_cannot_change_the_clip_are_said(pipe, more, message, caplog):
    with caplog.at_level(logging.WARNING):
        pipe(PROMPT, output_type="latent", **{**CALL, **more})
    assert message in caplog.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--negative", OTHER), "--negative has no effect without --guidance"),
        (("--prompt-at", 60, OTHER), "--prompt-at: found a change at 60 s, expected one up to 0"),
        (("--switch", "cut"), "--switch has no effect without --prompt-at"),
        (("--guidance", "nan"), "--guidance: found nan, expected 0 to 100"),
        (("--shift", "inf"), "--shift: found inf, expected 0.01 to 100"),
    ],
)
def test_the_command_line_names_its_options(model, tmp_path, capsys, more, message):
    assert generate(model, tmp_path / "a.mp4", "--frames", 9, *more) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a.mp4").exists()
