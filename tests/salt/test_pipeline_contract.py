"""The pipeline conventions of diffusers: signature, batches, embeddings, callbacks, saving, offloading."""

import inspect
from dataclasses import fields

import accelerate
import pytest
import torch
from diffusers.callbacks import PipelineCallback

from salt.errors import InputError
from salt.models.streaming_vae import Tiling
from salt.pipeline import PipelineInputs, SaltPipeline
from salt.schedule import STEP_LISTS
from salt.spec import StudentSpec
from tests.helpers import tiny_system

PROMPT, OTHER = "a red circle moving right", "a circle moving"
CALL = {"num_frames": 9, "num_inference_steps": 2, "height": 32, "width": 32, "seed": 0, "output_type": "latent"}


def causal(**spec) -> SaltPipeline:
    tokenizer, text_encoder = tiny_system.umt5_models()
    pipe = SaltPipeline(
        tiny_system.student(text_dim=32), tiny_system.vae(), text_encoder.eval(), tokenizer, student=StudentSpec(**spec)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bidirectional() -> SaltPipeline:
    return causal(frames_per_block=0, steps=STEP_LISTS[4])


@pytest.fixture(scope="module", params=[causal, bidirectional])
def pipe(request):
    return request.param()


def test_call_and_stream_spell_every_input():
    names = [f.name for f in fields(PipelineInputs)]
    defaults = {f.name: f.default for f in fields(PipelineInputs)}
    for method in (SaltPipeline.__call__, SaltPipeline.stream):
        parameters = inspect.signature(method).parameters
        assert list(parameters)[1 : len(names) + 1] == names
        assert {name: parameters[name].default for name in names} == defaults
        assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


def test_tuple_and_output_are_the_same(pipe):
    out = pipe(PROMPT, **CALL)
    frames, latents, memory = pipe(PROMPT, return_dict=False, **CALL)
    assert torch.equal(out[0], frames) and torch.equal(out.latents, latents)
    assert (out.memory is None) == (memory is None)


def test_clips_of_one_prompt_stand_side_by_side(pipe):
    seeds, guided = [1, 2, 3, 4], {"guidance_scale": 3.0, "negative_prompt": ["a", "red"]}
    both = pipe([PROMPT, OTHER], num_videos_per_prompt=2, **{**CALL, **guided, "seed": seeds})
    assert both.latents.shape[0] == 4 and both.seeds == (1, 2, 3, 4)
    for row, prompt in enumerate((PROMPT, PROMPT, OTHER, OTHER)):
        single = {"guidance_scale": 3.0, "negative_prompt": ("a", "red")[row // 2], "seed": seeds[row]}
        alone = pipe(prompt, **{**CALL, **single}).latents
        assert torch.allclose(both.latents[row : row + 1], alone, atol=1e-4)
    with pytest.raises(InputError, match="negative_prompt: found a batch of 3, expected 1 or 2"):
        pipe([PROMPT, OTHER], num_videos_per_prompt=2, guidance_scale=3.0, negative_prompt=["a"] * 3, **CALL)
    with pytest.raises(InputError, match="num_videos_per_prompt: found 0, expected 1 or more"):
        pipe(PROMPT, num_videos_per_prompt=0, **CALL)


def test_embeddings_are_the_prompt(pipe):
    guided = {**CALL, "guidance_scale": 3.0}
    expected = pipe([PROMPT, OTHER], negative_prompt="a", **guided).latents
    prompt_embeds, negative_prompt_embeds = pipe.encode_prompt([PROMPT, OTHER], "a")
    assert prompt_embeds.shape == negative_prompt_embeds.shape == (2, 512, 32)
    found = pipe(prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds, **guided).latents
    assert torch.equal(found, expected)
    assert pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[1] is None
    assert torch.equal(pipe.encode_prompt([PROMPT, OTHER], num_videos_per_prompt=2)[0][::2], prompt_embeds)
    with pytest.raises(InputError, match="prompt cannot be combined with `prompt_embeds`"):
        pipe(PROMPT, prompt_embeds=prompt_embeds, **CALL)
    with pytest.raises(
        InputError, match=r"prompt_embeds: found shape \[512, 32\], expected \[prompts, length, width\]"
    ):
        pipe(prompt_embeds=prompt_embeds[0], **CALL)
    with pytest.raises(InputError, match="prompt: found none"):
        pipe(**CALL)


def test_prompts_are_encoded_without_the_other_components():
    whole = causal()
    alone = SaltPipeline(None, None, whole.text_encoder, whole.tokenizer)
    assert torch.equal(alone.encode_prompt(PROMPT)[0], whole.encode_prompt(PROMPT)[0])


def test_optional_components_may_be_missing(tmp_path):
    pipe = causal()
    prompt_embeds, _ = pipe.encode_prompt(PROMPT)
    pipe.text_encoder = pipe.tokenizer = None
    pipe.save_pretrained(tmp_path)
    loaded = SaltPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.text_encoder is None and loaded.tokenizer is None
    expected = pipe(prompt_embeds=prompt_embeds, **CALL).latents
    assert torch.equal(loaded(prompt_embeds=prompt_embeds, **CALL).latents, expected)
    with pytest.raises(InputError, match="prompt needs a text encoder"):
        loaded(PROMPT, **CALL)


def test_a_callback_that_changes_nothing_changes_nothing(pipe):
    expected = pipe(PROMPT, **CALL).latents
    for callback in (lambda *_: None, lambda *_: {}, lambda pipe, index, timestep, tensors: tensors):
        assert torch.equal(pipe(PROMPT, callback_on_step_end=callback, **CALL).latents, expected)


def test_a_callback_replaces_latents_at_any_step(pipe):
    expected = pipe(PROMPT, **CALL).latents

    def zero_at(step):
        def callback(pipe, index, timestep, tensors):
            return {"latents": torch.zeros_like(tensors["latents"])} if index == step else None

        return callback

    assert pipe(PROMPT, callback_on_step_end=zero_at(pipe.num_timesteps - 1), **CALL).latents.abs().max() == 0
    first = pipe(PROMPT, callback_on_step_end=zero_at(0), **CALL).latents
    assert first.abs().max() > 0 and not torch.allclose(first, expected, atol=1e-4)


def test_later_blocks_remember_replaced_latents():
    pipe = causal()
    first = pipe(PROMPT, **CALL).latents
    longer = {**CALL, "num_frames": 21}

    def replace_first_block(pipe, index, timestep, tensors):
        return {"latents": 2 * first} if index == 1 else None

    replaced = pipe(PROMPT, callback_on_step_end=replace_first_block, **longer)
    assert torch.equal(replaced.latents[:, :, :3], 2 * first)
    started = pipe(PROMPT, initial_latents=2 * first, **longer).latents
    assert torch.equal(replaced.latents[:, :, 3:], started[:, :, 3:])


def test_a_callback_sees_the_embeddings_and_cannot_replace_them(pipe):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append(tensors)

    names = ["prompt_embeds", "negative_prompt_embeds"]
    watched = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    pipe(PROMPT, guidance_scale=3.0, **watched, **CALL)
    assert list(seen[0]) == names and torch.equal(seen[0]["prompt_embeds"], pipe.encode_prompt(PROMPT)[0])
    assert pipe.guidance_scale == 3.0 and pipe.do_classifier_free_guidance and pipe.num_timesteps == len(seen) == 2
    pipe(PROMPT, **watched, **CALL)
    assert seen[-1]["negative_prompt_embeds"] is None and not pipe.do_classifier_free_guidance
    with pytest.raises(InputError, match="callback_on_step_end cannot replace prompt_embeds"):
        pipe(PROMPT, callback_on_step_end=lambda *_: {"prompt_embeds": torch.zeros(1, 1, 32)}, **CALL)
    with pytest.raises(InputError, match="callback_on_step_end returned latents of shape"):
        pipe(PROMPT, callback_on_step_end=lambda *_: {"latents": torch.zeros(1)}, **CALL)
    with pytest.raises(InputError, match="callback_on_step_end_tensor_inputs: found noise, expected some of latents"):
        pipe(PROMPT, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["noise"], **CALL)


def test_diffusers_callback_classes_name_their_tensors(pipe):
    class Halve(PipelineCallback):
        tensor_inputs = ["latents", "prompt_embeds"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            assert list(callback_kwargs) == self.tensor_inputs
            return {**callback_kwargs, "latents": callback_kwargs["latents"] / 2}

    found = pipe(PROMPT, callback_on_step_end=Halve(cutoff_step_ratio=1.0), **CALL).latents
    assert not torch.equal(found, pipe(PROMPT, **CALL).latents)


def test_a_prompt_change_is_seen_by_the_callback_of_its_block():
    pipe, seen = causal(), []
    pipe(
        PROMPT,
        prompt_schedule=[(0.6, OTHER)],
        callback_on_step_end=lambda p, i, t, tensors: seen.append(tensors["prompt_embeds"]),
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
        **{**CALL, "num_frames": 21},
    )
    before, after = pipe.encode_prompt([PROMPT, OTHER])[0].split(1)
    assert torch.equal(seen[1], before) and torch.allclose(seen[2], after, atol=1e-6)


def test_initial_noise_as_latents(pipe):
    noise = torch.randn(1, 16, 3, 4, 4)
    found = pipe(PROMPT, latents=noise, **CALL).latents
    assert torch.equal(found, pipe(PROMPT, latents=noise, **CALL).latents)
    assert not torch.allclose(found, pipe(PROMPT, **CALL).latents, atol=1e-4)
    with pytest.raises(InputError, match=r"latents: found shape \(1, 16, 2, 4, 4\), expected \(1, 16, 3, 4, 4\)"):
        pipe(PROMPT, latents=noise[:, :, :2], **CALL)


def test_the_noise_that_would_be_drawn_gives_the_same_clip():
    """Block by block, where the clip goes on from a memory too."""
    from salt.noise import SeededNoise

    pipe, longer = causal(), {**CALL, "num_frames": 21}
    drawn = SeededNoise(0, 1, 16, 4, 4)
    noise = torch.cat([drawn(0, 3, 0), drawn(3, 3, 0)], dim=2)
    expected = pipe(PROMPT, **longer)
    assert torch.equal(pipe(PROMPT, latents=noise, **longer).latents, expected.latents)
    first = pipe(PROMPT, **CALL)
    more = {**CALL, "num_frames": 12, "memory": first.memory, "history_latents": first.latents}
    rest = pipe(PROMPT, latents=noise[:, :, 3:], **more).latents
    assert torch.equal(rest, expected.latents[:, :, 3:])


def test_weights_that_come_from_main_memory_give_the_same_clip(pipe):
    expected = pipe(PROMPT, **CALL).latents
    _, hook = accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")
    try:
        assert torch.equal(pipe(PROMPT, **CALL).latents, expected)
    finally:
        hook.remove()


def test_tiles_are_enabled_and_disabled():
    pipe = causal()
    assert pipe.new_decoder().tiling is None
    pipe.enable_vae_tiling(Tiling(size=64, overlap=16))
    assert pipe.new_decoder().tiling == Tiling(size=64, overlap=16)
    pipe.disable_vae_tiling()
    assert pipe.new_decoder().tiling is None


def test_attention_slicing_leaves_the_pipeline_usable(pipe):
    pipe.enable_attention_slicing()
    assert torch.isfinite(pipe(PROMPT, **CALL).latents).all()
    pipe.disable_attention_slicing()
