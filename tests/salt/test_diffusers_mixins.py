"""diffusers' own pipeline tests on `SaltPipeline`, from the checkout that `DIFFUSERS_PATH` names."""

import diffusers.pipelines
import pytest
import torch
from diffusers import WanPipeline

from salt.pipeline import SaltPipeline
from salt.schedule import STEP_LISTS
from salt.spec import StudentSpec
from tests.helpers import diffusers_mixins, tiny_system

if diffusers_mixins.checkout() is None:
    pytest.skip("DIFFUSERS_PATH names no diffusers checkout", allow_module_level=True)
common = diffusers_mixins.load("pipelines.testing_utils.common")
lora = diffusers_mixins.load("pipelines.testing_utils.lora")
memory = diffusers_mixins.load("pipelines.testing_utils.memory")

TEXT_WIDTH = 32


class Config(common.BasePipelineTesterConfig):
    """A causal pipeline of tiny random components: two layers, a UMT5 of width 32, a VAE of 4 channels."""

    pipeline_class = SaltPipeline
    required_input_params_in_call_signature = frozenset(
        ["prompt", "negative_prompt", "height", "width", "guidance_scale", "prompt_embeds", "negative_prompt_embeds"]
    )
    # Those of diffusers' WanPipeline: videos are counted, not images.
    optional_input_params = frozenset(
        ["num_inference_steps", "num_videos_per_prompt", "generator", "latents", "output_type", "return_dict"]
    )
    batch_input_params = frozenset(["prompt", "negative_prompt"])
    callback_cfg_params = frozenset(["prompt_embeds"])
    output_shape = (9, 3, 32, 32)
    spec = StudentSpec()

    @pytest.fixture(autouse=True)
    def pipeline_is_found_in_diffusers(self, monkeypatch):
        """`encode_prompt`'s source is looked up by class name in diffusers' own pipelines."""
        monkeypatch.setattr(diffusers.pipelines, "SaltPipeline", SaltPipeline, raising=False)

    def get_pipeline(self, **components):
        pipe = super().get_pipeline(**components)
        pipe.spec = self.spec
        return pipe

    def get_dummy_components(self):
        tokenizer, text_encoder = tiny_system.umt5_models()
        return {
            "transformer": tiny_system.student(text_dim=TEXT_WIDTH),
            "vae": tiny_system.vae(),
            "text_encoder": text_encoder.eval(),
            "tokenizer": tokenizer,
            "image_encoder": None,
            "image_processor": None,
        }

    def get_dummy_inputs(self):
        return {
            "prompt": "a red circle moving right",
            "negative_prompt": "a circle",
            "generator": self.get_generator(0),
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "height": 32,
            "width": 32,
            "num_frames": 9,
            "output_type": "pt",
        }


class EmbeddingsConfig(Config):
    """The same with embeddings instead of prompts, for a pipeline without its optional text encoder."""

    def get_dummy_inputs(self):
        torch.manual_seed(1)
        prompt_embeds, negative_prompt_embeds = torch.randn(2, 1, 7, TEXT_WIDTH)
        embeddings = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        texts = ("prompt", "negative_prompt")
        return {k: v for k, v in super().get_dummy_inputs().items() if k not in texts} | embeddings


class BidirectionalConfig(Config):
    spec = StudentSpec(frames_per_block=0, steps=STEP_LISTS[4])


class TestCausal(Config, common.PipelineTesterMixin):
    def test_save_load_optional_components(self, tmp_path):
        """Without a text encoder, one of the optional components, a pipeline takes embeddings."""
        common.PipelineTesterMixin.test_save_load_optional_components(_WithEmbeddings(), tmp_path)


class TestBidirectional(BidirectionalConfig, common.PipelineTesterMixin):
    test_save_load_optional_components = TestCausal.test_save_load_optional_components


class TestCausalMemory(Config, memory.MemoryTesterMixin):
    pass


class TestCausalLora(Config, lora.LoraTesterMixin):
    pass


class _WithEmbeddings(EmbeddingsConfig, common.PipelineTesterMixin):
    pass


def test_the_call_takes_what_wan_pipeline_takes():
    names = set(common.inspect.signature(WanPipeline.__call__).parameters)
    known = set(common.inspect.signature(SaltPipeline.__call__).parameters)
    assert names - known == {"guidance_scale_2", "max_sequence_length"}
