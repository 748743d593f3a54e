"""Acceleration presets of the pipeline: the same clip faster or in less memory, and errors where that is impossible."""

import gc
from types import SimpleNamespace

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from salt.acceleration.cuda_graphs import CUDAGraphTransformer
from salt.acceleration.presets import PREFERENCES, AccelerationPreset, fp8_linears, preset_of
from salt.checkpoints import load_student
from salt.io.video import VideoWriter
from salt.memory import BufferPool, KVMemory, MemoryGeometry, MemoryPolicy
from salt.memory.store import Store
from salt.models import async_decoder
from salt.models.fingerprint import fingerprint
from salt.models.taehv import TinyDecoder, TinyStreamDecoder
from salt.pipeline import SaltPipeline
from salt.pipeline.components import tiny_folder
from tests.helpers import golden

PROMPT = "a fast red circle moving right"
CLIP = dict(num_frames=69, seed=3, num_inference_steps=2, memory_policy="sink:3,window:9")


@pytest.fixture
def pipe():
    pipe = SaltPipeline.tiny()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, **options):
    return pipe(PROMPT, output_type="latent", **{**CLIP, **options}).latents


def near(made, expected):
    """Relative error of the first blocks; rounding errors grow from block to block."""
    return ((made - expected)[:, :, :9].norm() / expected[:, :, :9].norm()).item()


def test_words_are_told_apart():
    assert preset_of("exact") == AccelerationPreset()
    with pytest.raises(ValueError, match="prefer: found 'quick', expected one of 'exact', 'fast', 'fastest', 'low mem"):
        preset_of("quick")
    stated = MemoryPolicy("sink", 9, 3, precision="int4", residence="cpu")
    assert PREFERENCES["low memory"].policy(stated) == stated, "a policy that names its precision keeps it"
    assert PREFERENCES["low memory"].policy(MemoryPolicy("sink", 9, 3)).precision == "int8"


@pytest.mark.slow
def test_fast_is_the_same_clip_compiled_once(pipe):
    expected = latents(pipe)
    pipe.set_acceleration("fast")
    made = latents(pipe)
    assert near(made, expected) < 1e-4
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0 and torch.equal(latents(pipe), made)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a second clip compiles nothing"
    with pytest.raises(ValueError, match="found 'exact' on a compiled pipeline, expected a new pipeline"):
        pipe.set_acceleration("exact")


def test_low_memory_halves_the_memory_and_offloads_the_text_encoder(pipe):
    expected = latents(pipe)
    pipe.set_acceleration("low memory")
    made = pipe(PROMPT, output_type="latent", **CLIP)
    assert made.memory.policy.precision == "int8" and near(made.latents, expected) < 0.05
    assert next(pipe.stream(PROMPT, **CLIP)).pixels.shape[3:] == (64, 64), "decoding in tiles"


def test_fastest_names_its_requirements(pipe):
    with pytest.raises(ValueError, match="found 'fastest' with weights in torch.float32, expected torch.bfloat16"):
        pipe.set_acceleration("fastest")
    assert pipe.acceleration == AccelerationPreset()
    student = load_student(tiny_folder() / "transformer", dtype=torch.bfloat16)
    assert next(student.parameters()).dtype == torch.float32, "as of every checkpoint: modulation is not cast"
    with pytest.raises(ValueError, match="found 'fastest' on cpu, expected a GPU that multiplies in float8"):
        fp8_linears(student)


def test_moving_a_pipeline_drops_its_graphs(pipe):
    pipe.acceleration = AccelerationPreset(compiled=True)
    pipe._graphed = CUDAGraphTransformer(pipe.transformer, lambda function: function)
    assert pipe.to("cpu") is pipe and pipe._graphed is None, "weights lie elsewhere after a move"


def test_decoding_ahead_gives_the_same_chunks(pipe, monkeypatch):
    plain = list(pipe.stream(PROMPT, **CLIP))
    monkeypatch.setattr(async_decoder.AsyncDecoder, "overlaps", True)
    ahead = list(pipe.stream(PROMPT, **CLIP))
    assert len(ahead) == len(plain) == 6
    for one, other in zip(plain, ahead, strict=True):
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.frames, other.frames)
        assert one.first_frame == other.first_frame and one.block.index == other.block.index


def test_a_finished_block_is_yielded_before_the_next_blocks_error(pipe, monkeypatch):
    monkeypatch.setattr(async_decoder.AsyncDecoder, "overlaps", True)

    def stop(step):
        if step.block == 2:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        for chunk in pipe.stream(PROMPT, on_step=stop, **CLIP):
            seen.append(chunk.block.index)
    assert seen == [0, 1]


def test_frames_are_the_pixels_of_the_video_file(pipe, tmp_path):
    chunk = next(pipe.stream([PROMPT, PROMPT], **CLIP))
    assert chunk.frames.dtype == torch.uint8 and chunk.frames.shape == (2, 9, 64, 64, 3)
    expected = ((chunk.pixels + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(chunk.frames.permute(0, 4, 1, 2, 3), expected)
    with VideoWriter(tmp_path / "a.mp4") as video:
        video.write(chunk.frames[0])
    assert video.frames == 9


@torch.no_grad()
def test_buffers_of_deleted_memories_are_reused_and_of_held_ones_not():
    spare, geometry = BufferPool(), MemoryGeometry(layers=1, heads=1, head_dim=8, height=1, width=2)

    def memory(policy=MemoryPolicy("sink", 9, 3)):  # noqa: B008 - frozen
        made = KVMemory(policy, geometry)
        spare.lend_buffers(made)
        return made

    first = memory()
    store, second = first.store, memory()
    assert second.store is not store, "somebody holds the first"
    del first
    gc.collect()
    assert memory(MemoryPolicy("sink", 12, 3)).store is not store, "of another shape"
    again = memory()
    assert again.store is not second.store
    full = KVMemory(MemoryPolicy(), geometry)
    spare.lend_buffers(full)
    assert full.store is None, "a growing memory has no buffers of one size"


def test_graphs_are_replayed_in_the_next_clip(pipe):
    """On the CPU a graph is replaced by the function itself."""
    pipe.acceleration = AccelerationPreset(compiled=True)  # as on CUDA, without the compiler
    recorded = []
    pipe._graphed = CUDAGraphTransformer(pipe.transformer, lambda function: recorded.append(1) or function)
    first = latents(pipe)
    assert len(recorded) == 2
    gc.collect()
    assert torch.equal(latents(pipe), first) and len(recorded) == 2, "the same buffers, the same recordings"


def test_clips_with_guidance_reuse_both_memories_buffers(pipe):
    """Both memories' buffers are used for the next clip, and so are the graphs that read them."""
    pipe.acceleration = AccelerationPreset(fuse=True, compiled=True)
    recorded = []
    pipe._graphed = CUDAGraphTransformer(pipe.transformer, lambda function: recorded.append(1) or function)
    first = latents(pipe, guidance_scale=2.0)
    for clips in (2, 3, 4):
        gc.collect()
        assert torch.equal(latents(pipe, guidance_scale=2.0), first)
        assert len(recorded) == 6, f"both branches': read, fused, and the last block's context pass; {clips} clips"
    del first
    gc.collect()
    alive = [x for x in gc.get_objects() if type(x) is Store and x.geometry.tokens == 16]
    assert len(alive) == 2


def test_weights_that_accelerate_moves_are_not_captured(pipe):
    pipe.acceleration = AccelerationPreset(compiled=True)
    recorded = []
    pipe._graphed = CUDAGraphTransformer(pipe.transformer, lambda function: recorded.append(1) or function)
    expected = latents(pipe)
    add_hook_to_module(pipe.transformer, ModelHook())
    before = len(recorded)
    assert torch.equal(latents(pipe, memory_policy="sink:3,window:12"), latents(pipe, memory_policy="sink:3,window:12"))
    assert torch.equal(latents(pipe), expected) and len(recorded) == before


def test_low_memory_tiles_only_wans_decoder_and_resets_it(pipe, tmp_path):
    torch.save(TinyDecoder().state_dict(), tmp_path / "taew2_1.pth")
    pipe.set_decoder(tmp_path / "taew2_1.pth")
    pipe.set_acceleration("low memory")
    assert isinstance(pipe.new_decoder(), TinyStreamDecoder)
    pipe.set_decoder("wan")
    assert pipe.new_decoder().tiling is not None
    pipe.set_acceleration("exact")
    assert pipe.new_decoder().tiling is None


def test_weights_taken_apart_and_float8_rows_have_a_word_or_a_fingerprint(pipe):
    class Rows(torch.nn.Module):
        """As torchao's float8 weights: codes inside, and a tensor outside that does not flatten."""

        def named_parameters(self):
            codes = torch.arange(64.0).view(8, 8).to(torch.float8_e4m3fn)
            yield (
                "weight",
                SimpleNamespace(shape=codes.shape, device=codes.device, detach=lambda: SimpleNamespace(qdata=codes)),
            )

    assert len(fingerprint(Rows())) == 16
    with pytest.raises(ValueError, match="weights are loaded layer by layer"):
        fingerprint(torch.nn.Linear(2, 2, device="meta"))


def test_q_k_and_v_in_one_layer_give_the_same_attention():
    from salt.acceleration.presets import fuse_self_attention

    student, text = golden.student(), torch.randn(1, 12, 64)
    x, t = torch.randn(1, 16, 3, 4, 6), torch.full((1,), 500.0)
    with torch.no_grad():
        before = student(x, t, text).sample
        fuse_self_attention(student)
        after = student(x, t, text).sample
    names = {name.rpartition(".")[2] for name, _ in student.blocks[0].attn1.named_children()}
    assert "to_qkv" in names and not names & {"to_q", "to_k", "to_v"}, "their weights are not kept twice"
    assert golden.relative_error(after, before) < 1e-5


def test_models_are_bfloat16_on_a_gpu_by_default():
    from salt.pipeline.from_options import PipelineOptions, chosen_dtype, load_pipeline

    found = [chosen_dtype(None, torch.device(device)) for device in ("cuda", "cpu")]
    assert found == [torch.bfloat16, torch.float32]
    pipe = load_pipeline(PipelineOptions(vae_dtype="bfloat16"), torch.device("cpu"))
    assert pipe.vae.dtype == torch.bfloat16 and pipe.transformer.dtype == torch.float32
