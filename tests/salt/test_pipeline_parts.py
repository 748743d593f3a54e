"""The pipeline with the components of a real Wan: UMT5, image-to-video, TAEHV, folders of diffusers."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5EncoderModel

from salt.checkpoints import save_wan
from salt.cli import main
from salt.memory import MemoryPolicy
from salt.models.taehv import TinyDecoder
from salt.models.text_encoder import CachedTextEncoder, UMT5TextEncoder
from salt.pipeline import SaltPipeline
from salt.pipeline.base import WAN_SPEC
from salt.pipeline.from_options import PipelineOptions, load_pipeline
from salt.spec import StudentSpec
from tests.helpers import tiny_system

PROMPT = "a red circle moving right"
SHORT = {"num_frames": 9, "num_inference_steps": 1, "height": 32, "width": 32, "seed": 0, "output_type": "latent"}


@pytest.fixture
def parts(tmp_path):
    """Folders as `salt pull` downloads them: vae, text_encoder and tokenizer, no model_index.json."""
    folder = tiny_system.umt5(tmp_path / "parts")
    tiny_system.vae().save_pretrained(folder / "vae")
    return folder


def wan_folder(path, parts):
    """A folder written by diffusers' own WanPipeline, without a student's spec."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(**{**tiny_system.SMALL, "text_dim": 32})
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
    pipe = WanPipeline(
        AutoTokenizer.from_pretrained(parts / "tokenizer"),
        UMT5EncoderModel.from_pretrained(parts / "text_encoder"),
        AutoencoderKLWan.from_pretrained(parts / "vae"),
        FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
    )
    pipe.save_pretrained(path)
    return path


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_wan_folder_of_diffusers_is_a_bidirectional_student(tmp_path, parts):
    pipe = quiet(SaltPipeline.from_pretrained(wan_folder(tmp_path / "wan", parts)))
    assert pipe.spec == WAN_SPEC
    first = pipe(PROMPT, **SHORT).latents
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    again = quiet(SaltPipeline.from_pretrained(tmp_path / "saved"))
    assert isinstance(again.prompt_encoder, UMT5TextEncoder) and torch.equal(again(PROMPT, **SHORT).latents, first)
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "saved" / "transformer")
    assert torch.equal(stock.proj_out.weight, pipe.transformer.proj_out.weight)


def test_a_recipe_makes_a_causal_student_of_a_wan_folder(tmp_path, parts):
    spec = StudentSpec(policy=MemoryPolicy("window", 9))
    pipe = quiet(SaltPipeline.from_pretrained(wan_folder(tmp_path / "wan", parts), student=spec))
    assert pipe.spec == spec and pipe(PROMPT, **SHORT).memory.policy == spec.policy


def test_checkpoint_with_pulled_parts_from_the_command_line(tmp_path, parts, monkeypatch):
    student = tmp_path / "student.safetensors"
    save_wan(tiny_system.student(text_dim=32), student, spec=StudentSpec())
    make = ["generate", PROMPT, "--model", student, "--device", "cpu", "--nfe", 1, "--frames", 9]
    make += ["--height", 32, "--width", 32, "--text-cache", tmp_path / "cache"]
    make = [str(a) for a in make]
    assert main([*make, "--parts", str(parts), "-o", str(tmp_path / "a.mp4")]) == 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    shutil.copytree(parts, tmp_path / "models" / "Wan2.1-T2V-1.3B-Diffusers")
    monkeypatch.setenv("SALT_MODELS", str(tmp_path / "models"))
    assert main([*make, "-o", str(tmp_path / "b.mp4")]) == 0
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()


def test_the_text_encoder_is_offloaded_and_loaded_for_new_prompts(tmp_path, parts, monkeypatch):
    student = tmp_path / "student.safetensors"
    save_wan(tiny_system.student(text_dim=32), student, spec=StudentSpec())
    options = PipelineOptions(model=str(student), parts=parts, text_cache=tmp_path / "cache", dtype="bfloat16")
    pipe = load_pipeline(options, torch.device("cpu"))
    assert pipe.text_encoder is None and isinstance(pipe.prompt_encoder, CachedTextEncoder)
    assert pipe.vae.dtype == torch.float32 and pipe.transformer.dtype == torch.bfloat16
    known = pipe.prompt_encoder.encode([PROMPT])
    monkeypatch.setattr(UMT5TextEncoder, "from_pretrained", lambda *a, **k: pytest.fail("loaded for a known prompt"))
    again = load_pipeline(options, torch.device("cpu"))
    assert torch.equal(again.prompt_encoder.encode([PROMPT]), known)


def test_wrong_architecture_and_missing_parts_are_one_line(tmp_path, parts, capsys):
    foreign = tmp_path / "vae.safetensors"
    shutil.copy(parts / "vae" / "diffusion_pytorch_model.safetensors", foreign)
    out = ["-o", str(tmp_path / "a.mp4"), "--device", "cpu"]
    assert main(["generate", PROMPT, "--model", str(foreign), "--parts", str(parts), *out]) == 2
    error = capsys.readouterr().err
    assert "vae.safetensors" in error and error.count("\n") == 1
    save_wan(tiny_system.student(text_dim=32), tmp_path / "student.safetensors")
    shutil.rmtree(parts / "vae")
    whole = tmp_path / "student.safetensors"
    assert main(["generate", PROMPT, "--model", str(whole), "--parts", str(parts), *out]) == 2
    assert "found no vae/config.json" in capsys.readouterr().err


def test_image_to_video_student_in_blocks_with_clip(tmp_path):
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    model = tiny_system.student(in_channels=36, image_dim=48, added_kv_proj_dim=32)
    pipe = SaltPipeline(
        model,
        tiny_system.vae(),
        image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=processor,
        words={"dim": 4096, "max_length": 16},
        default_size=(32, 32),
    )
    seen = []
    model.register_forward_pre_hook(lambda m, args: seen.append((args[0], args[3])))
    image = torch.rand(3, 32, 32) * 2 - 1
    out = quiet(pipe)(PROMPT, image=image, **{**SHORT, "num_frames": 21})
    assert out.latents.shape[2] == 6 and out.memory.next_frame == 6
    first, later = seen[0][0], seen[-1][0]
    assert first[0, 16:20, :, 0, 0].tolist() == [[1.0, 0.0, 0.0]] * 4 and later[0, 16:20].abs().max() == 0
    assert seen[0][1].shape == (1, 5, 48)  # four patches and the class token
    other = pipe(PROMPT, image=-image, **{**SHORT, "num_frames": 21})
    assert not torch.allclose(out.latents, other.latents, atol=1e-4)
    pipe.save_pretrained(tmp_path / "i2v")
    again = quiet(SaltPipeline.from_pretrained(tmp_path / "i2v"))
    assert torch.equal(again(PROMPT, image=image, **{**SHORT, "num_frames": 21}).latents, out.latents)


def test_the_tiny_decoder_instead_of_wans(tmp_path):
    torch.manual_seed(0)
    torch.save(TinyDecoder().state_dict(), tmp_path / "taew2_1.pth")
    pipe = tiny_system.pipeline()
    options = {**SHORT, "output_type": "pt", "num_frames": 21}
    wan = pipe(PROMPT, **options)
    pipe.set_decoder(tmp_path / "taew2_1.pth")
    tiny = pipe(PROMPT, **options)
    assert torch.equal(wan.latents, tiny.latents)
    assert tiny.frames.shape == wan.frames.shape and not torch.allclose(tiny.frames, wan.frames, atol=1e-2)
    pipe.set_decoder("wan")
    assert torch.equal(pipe(PROMPT, **options).frames, wan.frames)


def test_chunks_hold_the_latents_they_show_a_start_included():
    pipe = tiny_system.pipeline()
    image = torch.rand(3, 32, 32) * 2 - 1
    options = {k: v for k, v in SHORT.items() if k != "output_type"}
    chunks = list(pipe.stream(PROMPT, image=image, **{**options, "num_frames": 25}))
    assert [c.latents.shape[2] for c in chunks] == [4, 3] and [c.pixels.shape[2] for c in chunks] == [13, 12]
    whole = pipe(PROMPT, image=image, **{**SHORT, "num_frames": 25}).latents
    assert torch.equal(torch.cat([c.latents for c in chunks], 2), whole)
