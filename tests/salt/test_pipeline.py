"""The pipeline: prompts to frames, streaming, extension, starts, saving and loading."""

import pytest
import torch

from salt.checkpoints import save_wan
from salt.errors import InputError
from salt.memory import MemoryPolicy
from salt.pipeline import SaltPipeline
from salt.schedule import STEP_LISTS
from salt.spec import StudentSpec
from tests.helpers import tiny_system

PROMPT = "a fast red circle moving right"


@pytest.fixture(scope="module")
def pipe():
    return tiny_system.pipeline()


def call(pipe, prompt=PROMPT, frames=21, **options):
    options = {"num_inference_steps": 2, "seed": 3, "output_type": "pt", **options}
    length = {} if "seconds" in options else {"num_frames": frames}
    return pipe(prompt, **length, **options)


def test_frames_latents_memory(pipe):
    out = call(pipe)
    assert out.frames.shape == (1, 21, 3, 32, 32) and out.latents.shape == (1, 16, 6, 4, 4)
    assert 0 <= out.frames.min() and out.frames.max() <= 1
    assert out.memory.next_frame == 6 and out.seeds == (3,)


def test_stream_is_the_call_in_pieces(pipe):
    whole = call(pipe)
    chunks = list(pipe.stream(PROMPT, num_frames=21, num_inference_steps=2, seed=3))
    assert [c.pixels.shape[2] for c in chunks] == [9, 12] and [c.first_frame for c in chunks] == [0, 9]
    pixels = torch.cat([c.pixels for c in chunks], 2).transpose(1, 2) / 2 + 0.5
    assert torch.allclose(pixels, whole.frames, atol=1e-5)


def test_seed_and_generator_decide_the_clip(pipe):
    first = call(pipe).latents
    assert torch.equal(first, call(pipe).latents) and not torch.equal(first, call(pipe, seed=4).latents)


def test_a_generator_is_drawn_from_and_goes_on(pipe):
    generator = torch.Generator().manual_seed(3)
    first, second = (call(pipe, seed=None, generator=generator) for _ in range(2))
    assert first.seeds != second.seeds and not torch.equal(first.latents, second.latents)
    again = call(pipe, seed=None, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.latents, first.latents)
    both = call(pipe, [PROMPT] * 2, seed=None, generator=torch.Generator().manual_seed(3))
    assert both.seeds == (*first.seeds, *second.seeds), "one generator gives every clip of a batch its own seed"
    each = [torch.Generator().manual_seed(3), torch.Generator().manual_seed(9)]
    assert call(pipe, [PROMPT] * 2, seed=None, generator=each).seeds[0] == first.seeds[0]
    with pytest.raises(ValueError, match=r"generator: found 2, expected one, or one per clip \(1\)"):
        call(pipe, seed=None, generator=each)


def test_two_prompts_are_two_clips(pipe):
    both = call(pipe, [PROMPT, "a slow blue square moving up"], seed=[3, 9])
    assert torch.allclose(both.latents[:1], call(pipe).latents, atol=1e-5)
    assert torch.allclose(both.latents[1:], call(pipe, "a slow blue square moving up", seed=9).latents, atol=1e-5)


@pytest.mark.parametrize("policy", [None, "window:9", MemoryPolicy("sink", 9, 3)])
def test_an_extension_continues_the_clip_exactly(pipe, policy):
    whole = call(pipe, frames=33, memory_policy=policy)
    first = call(pipe, memory_policy=policy)
    rest = call(pipe, frames=12, memory=first.memory, history_latents=first.latents)
    assert torch.equal(torch.cat([first.latents, rest.latents], 2), whole.latents)
    assert torch.allclose(torch.cat([first.frames, rest.frames], 1), whole.frames, atol=1e-4)


def test_image_start_is_the_first_frame(pipe):
    image = torch.rand(3, 40, 32) * 2 - 1
    out = call(pipe, frames=13, image=image)
    assert out.latents.shape[2] == 4 and out.frames.shape[1] == 13
    other = call(pipe, frames=13, image=-image)
    assert not torch.allclose(out.latents[:, :, 1:], other.latents[:, :, 1:], atol=1e-4)


def test_image_to_video_student_gets_mask_condition_and_clip_channels():
    pipe = tiny_system.pipeline(in_channels=36, spec=StudentSpec(frames_per_block=0, steps=STEP_LISTS[4]))
    image = torch.rand(3, 32, 32) * 2 - 1
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    out = pipe(PROMPT, num_frames=9, image=image, seed=0, output_type="pt")
    assert out.frames.shape[1] == 9 and out.memory is None and len(seen) == 4
    mask = seen[0][0, 16:20, :, 0, 0]
    assert seen[0].shape[1] == 36 and mask[:, 0].tolist() == [1.0] * 4 and mask[:, 1:].abs().max() == 0
    with pytest.raises(ValueError, match="image is required by image-to-video models"):
        pipe(PROMPT, num_frames=9)


def test_prompt_schedule_changes_what_comes_after(pipe):
    plain = call(pipe, frames=33).latents
    later = [(0.7, "a slow blue square moving up", "recache")]
    changed = call(pipe, frames=33, prompt_schedule=later).latents
    assert torch.equal(plain[:, :, :3], changed[:, :, :3])
    assert not torch.allclose(plain[:, :, 6:], changed[:, :, 6:], atol=1e-4)


def test_fused_and_plain_agree(pipe):
    assert torch.allclose(call(pipe).latents, call(pipe, fuse=True).latents, atol=1e-5)


def test_seconds_that_the_start_fills_are_refused(pipe):
    with pytest.raises(ValueError, match="seconds: found 0.5, expected more than the start's 0.5625 s"):
        call(pipe, seconds=0.5, initial_latents=torch.randn(1, 16, 3, 4, 4))


def test_seconds_are_rounded_up_to_blocks(pipe):
    assert call(pipe, seconds=1.0).frames.shape[1] == 21
    with pytest.raises(ValueError, match="num_frames: found 20, expected 9 or 21"):
        call(pipe, frames=20)


def test_callback_counts_the_denoising_steps_of_all_blocks(pipe):
    seen, calls = [], []
    out = call(pipe, callback_on_step_end=lambda p, i, t, tensors: seen.append((i, t, tensors["latents"])))
    assert [i for i, _, _ in seen] == list(range(4)) and seen[0][1] == 1000.0 and pipe.num_timesteps == 4
    assert torch.equal(torch.cat([seen[1][2], seen[3][2]], 2), out.latents), "clean after a block's last step"
    list(pipe.stream(PROMPT, num_frames=21, num_inference_steps=2, on_step=lambda step: calls.append(step.kind)))
    assert calls == ["denoise", "denoise", "context"] * 2


def test_save_and_load_again(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    again = SaltPipeline.from_pretrained(tmp_path)
    assert again.spec == pipe.spec and again.default_size == (32, 32)
    assert torch.equal(call(again).latents, call(pipe).latents)


def test_checkpoint_file_beside_a_folder_of_parts(tmp_path, pipe):
    tiny_system.folder(tmp_path / "parts")
    spec = StudentSpec(steps=STEP_LISTS[2], policy=MemoryPolicy("window", 9))
    save_wan(pipe.transformer, tmp_path / "student.safetensors", spec=spec)
    loaded = SaltPipeline.from_single_file(tmp_path / "student.safetensors", parts=tmp_path / "parts")
    assert loaded.spec == spec
    assert torch.equal(call(loaded, memory_policy="full").latents, call(pipe).latents)


def test_bfloat16_transformer(pipe):
    low = tiny_system.pipeline()
    low.transformer.to(torch.bfloat16)
    out = call(low)
    assert out.latents.dtype == torch.float32 and torch.isfinite(out.latents).all()
    assert (out.latents - call(pipe).latents).norm() < 0.1 * out.latents.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prompt="a fast red dragon moving right"), "unknown word 'dragon'"),
        (dict(height=33), r"height: found 33 pixels, expected a multiple of 16 \(32 or 48\)"),
        (dict(width=7), r"width: found 7 pixels, expected a multiple of 16 \(16\)"),
        (dict(guidance_scale=3.0, memory="written"), "negative_memory is needed to extend `memory` with guidance"),
        (dict(memory="written", width=64), "width: found 64 pixels, expected those of the clip in `memory`, 32"),
        (
            dict(initial_latents=torch.zeros(1, 16, 3, 8, 4), width=64),
            r"\(1, 16, 3, 8, 4\), expected \(1, 16, 3, 8, 8\): 1 clip of 12 frames, 32x64 pixels, in .* 64x64 pixels",
        ),
        (dict(initial_latents=torch.zeros(16, 3, 4, 4)), r"initial_latents: found shape .* expected \[batch, channels"),
        (dict(latents=torch.zeros(1, 16, 3, 4, 4)), "1 clip of 12 frames, 32x32 pixels, in place of .*24 frames"),
        (dict(history_latents=torch.zeros(1, 16, 3, 4, 4)), "history_latents needs `memory`"),
        (
            dict(memory="written", history_latents=torch.zeros(1, 16, 3, 2, 4)),
            "history_latents: found shape .*32x16 pixels, in place of .*32x32 pixels",
        ),
        (dict(memory="other"), "memory was written by another model or LoRA: its fingerprint differs"),
        (dict(memory_policy="ring"), "memory_policy: found 'ring'"),
        (dict(num_inference_steps=2, steps=[1000, 500]), "num_inference_steps cannot be combined with `steps`"),
        (dict(output_type="gif"), "output_type: found 'gif'"),
        (dict(prompt=[]), "prompt: found none"),
    ],
)
def test_bad_requests_name_the_option(pipe, options, message):
    if options.get("memory") == "written":
        options = {**options, "memory": call(pipe).memory}
    if options.get("memory") == "other":
        options = {**options, "memory": call(tiny_system.pipeline(seed=1)).memory}
    prompt = options.get("prompt", PROMPT)
    with pytest.raises(ValueError, match=message):
        call(pipe, prompt, **{k: v for k, v in options.items() if k != "prompt"})


def test_guidance_with_a_negative_prompt(pipe):
    plain, guided = call(pipe), call(pipe, guidance_scale=3.0, negative_prompt="a slow blue square moving up")
    assert guided.negative_memory.next_frame == 6
    assert not torch.allclose(plain.latents, guided.latents, atol=1e-4)


def test_two_streams_over_one_memory_are_refused(pipe):
    def stream(memory=None):
        return pipe.stream(PROMPT, num_frames=21, num_inference_steps=1, seed=0, memory=memory)

    first = stream()
    memory = next(first).memory
    with pytest.raises(InputError, match="memory is being written by another rollout"):
        stream(memory)
    forked = stream(memory.fork())
    list(first)
    early, late = stream(memory), stream(memory)
    next(early)
    with pytest.raises(InputError, match="memory is being written by another rollout"):
        next(late)
    early.close()
    assert len(list(stream(memory))) == 2 and next(forked).block.index == 0
