"""Memory plans: arithmetic, agreement with simulated peaks, presets that keep to them, and out-of-memory errors."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salt.acceleration.presets import store_weights
from salt.checkpoints import save_diffusers
from salt.cli import main
from salt.errors import DeviceMemoryError, InputError
from salt.memory import MemoryPolicy, estimate_bytes
from salt.models.text_encoder import UMT5TextEncoder
from salt.models.transformer_salt import SaltTransformer3DModel
from salt.planning import PlanSettings, cheapest, memory_plan, planned_model, preset_settings
from salt.planning.choices import MEASURED, _candidates
from salt.planning.models import model_of_config
from salt.planning.peaks import RESERVE
from salt.planning.report import plan_line, plan_report
from tests.helpers import tiny_system
from train.config.model_configs import I2V, WAN_1_3B, WAN_14B

GB = 10**9
EXACT = PlanSettings()
WHOLE = PlanSettings(text="none")


def loaded_bytes(config: dict) -> int:
    """Of a transformer as it is loaded in bfloat16."""
    with torch.device("meta"):
        model = SaltTransformer3DModel(**{"out_channels": 16, **config})
    precise = set(SaltTransformer3DModel._keep_in_fp32_modules or [])
    return sum(p.numel() * (4 if set(n.split(".")) & precise else 2) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("1.3B", WAN_1_3B),
        ("14B", WAN_14B),
        ("14B-I2V", {**WAN_14B, **I2V}),
        ("salt-tiny", {"num_attention_heads": 2, "num_layers": 4, "ffn_dim": 256, "in_channels": 16}),
    ],
)
def test_weights_are_those_of_the_model(name, config):
    model = planned_model(name)
    assert memory_plan(model, EXACT).phases[0].parts["weights"] == loaded_bytes(config)


# Simulated peaks in GB of this project's own code at true size, decoding after denoising (docs/performance.md).
@pytest.mark.parametrize(
    ("name", "settings", "phase", "simulated"),
    [
        ("1.3B", WHOLE, "decoding", 10.7),
        ("1.3B", replace(WHOLE, vae="float32"), "decoding", 14.7),
        ("1.3B", replace(WHOLE, decoder="taehv"), "decoding", 7.3),
        ("1.3B", replace(WHOLE, guided=True), "decoding", 14.3),
        ("1.3B", replace(WHOLE, text="device"), "decoding", 22.1),
        ("1.3B", preset_settings("low memory", planned_model("1.3B"), WHOLE), "decoding", 5.7),
        ("1.3B", replace(WHOLE, text="visit"), "text", 14.6),
        ("14B", WHOLE, "decoding", 48.7),
        ("14B", preset_settings("low memory", planned_model("14B"), WHOLE), "decoding", 38),
    ],
)
def test_plans_agree_with_simulated_peaks(name, settings, phase, simulated):
    assert memory_plan(planned_model(name), settings).phase(phase).bytes / GB == pytest.approx(simulated, rel=0.1)


@pytest.mark.parametrize(
    ("name", "preset", "most"),
    [
        ("1.3B", "low memory", 8),
        ("1.3B", "fast", 12),
        ("14B", "lowest memory", 24),
        ("14B", "layer by layer", 16),
    ],
)
def test_presets_keep_to_their_limits(name, preset, most):
    """Prompts encoded, with what CUDA itself takes; `fast` needs a card of 12 GB and a little."""
    model = planned_model(name)
    peak = memory_plan(model, preset_settings(preset, model, EXACT)).peak
    assert peak <= most * GB and (preset == "fast" or peak + RESERVE <= most * GB)


@pytest.mark.parametrize("name", ["1.3B", "14B", "14B-I2V", "salt-tiny"])
@pytest.mark.parametrize("vram", [8, 12, 16, 24, 80])
def test_the_cheapest_settings_fit_and_larger_cards_need_no_costlier_ones(name, vram):
    model = planned_model(name)
    found, larger = (cheapest(model, EXACT, n * GB) for n in (vram, vram * 2))
    if found is not None:
        assert found.plan.peak + RESERVE <= vram * GB
        assert larger is not None and len(larger.costs) <= len(found.costs) + 1


def test_taehv_is_offered_for_the_latents_that_it_decodes_alone():
    for channels, offered in ((16, {"whole", "tiles", "taehv"}), (48, {"whole", "tiles"})):
        model = replace(planned_model("1.3B"), in_channels=channels, out_channels=channels)
        assert {settings.decoder for _, settings, _ in _candidates(model, EXACT)} == offered


def test_a_card_that_holds_everything_changes_nothing():
    found = cheapest(planned_model("1.3B"), EXACT, 80 * GB)
    assert found is not None
    assert found.plan.settings == replace(EXACT, policy=found.plan.model.spec.policy)
    assert found.costs == ()


def test_costs_are_those_of_the_quality_table():
    table = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    for way, (four, two) in MEASURED.items():
        for nfe, passed in ((4, four), (2, two)):
            row = re.search(rf"^\| {re.escape(way)}, {nfe} NFE \| (\d+)%", table, re.MULTILINE)
            assert row is not None and int(row[1]) == passed, (way, nfe)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("height", {"height": 2**14 + 1}),
        ("width", {"width": 0}),
        ("seconds", {"seconds": float("nan")}),
        ("seconds", {"seconds": 0}),
        ("clips", {"clips": 0}),
        ("text", {"text": "disk"}),
    ],
)
def test_settings_out_of_range_are_named(field, change):
    with pytest.raises(InputError) as error:
        PlanSettings(**change)
    assert error.value.field == field


def test_a_folder_and_a_file_are_planned_from_their_headers(tmp_path):
    folder = tiny_system.folder(tmp_path / "pipeline")
    pipe = tiny_system.pipeline()
    expected = model_of_config("x", dict(pipe.transformer.config))
    for path in (folder, folder / "transformer"):
        found = planned_model(str(path))
        assert (found.heads, found.layers, found.ffn) == (expected.heads, expected.layers, expected.ffn)
    with pytest.raises(InputError, match="^model: found 'nothing'"):
        planned_model("nothing")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--vram", "8"], "Cheapest that fits: --"),
        (["--model", "14B", "--cards"], "| 80 GB | `as it is`"),
        (["--model", "salt-tiny", "--size", "64x64", "--vram", "8"], "as it is"),
        (["--vram", "1"], "Nothing fits"),
    ],
)
def test_salt_plan_prints_tables(capsys, arguments, shown):
    assert main(["plan", *arguments]) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "830x480"], "--size: found a width of 830 pixels, expected a multiple of 16 (816 or 832)"),
        (["--vram", "nan"], "--vram: found nan"),
        (["--seconds", "-1"], "--seconds: found -1"),
        (["--model", "5B"], "--model: found '5B', expected a file"),
        (["--memory", "window:2"], "--memory: window: found 2, expected at least 3"),
    ],
)
def test_salt_plan_names_the_option_that_is_wrong(capsys, arguments, message):
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_sizes_that_fill_no_whole_tokens_are_refused_with_their_neighbours(tmp_path, capsys):
    save_diffusers(tiny_system.student(in_channels=48, out_channels=48), tmp_path)
    assert main(["plan", "--model", str(tmp_path), "--size", "1280x720"]) == 2
    assert "--size: found a height of 720 pixels, expected a multiple of 32 (704 or 736)" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"width: found 848 pixels, expected a multiple of 32 \(832 or 864\)"):
        memory_plan(planned_model(str(tmp_path)), PlanSettings(width=848))
    with pytest.raises(InputError, match=r"height: found 40 pixels, expected a multiple of 16 \(32 or 48\)"):
        tiny_system.pipeline().plan(height=40)
    with pytest.raises(InputError, match="width: found 16416 pixels, expected 1 to 16,384"):
        PlanSettings(width=16416)


def test_a_pipeline_plans_its_own_settings():
    pipe = tiny_system.pipeline()
    plan = pipe.plan(seconds=5, memory_policy="window:12,int8", guidance_scale=2.0)
    assert plan.settings.weights == "float32" and plan.settings.guided
    geometry = pipe.transformer.memory_geometry(1, *(n // pipe.spatial_scale for n in pipe.default_size))
    policy = MemoryPolicy.parse("window:12,int8")
    assert plan.phase("denoising").parts["KV memory"] == 2 * estimate_bytes(policy, geometry, torch.float32, 21)
    pipe.enable_vae_tiling()
    assert pipe.plan().settings.decoder == "tiles"
    assert "peak" in plan_line(plan, 8 * GB) and "\n" not in plan_line(plan, 10**6)


def test_an_encoder_layer_by_layer_gives_the_same_embeddings(tmp_path):
    folder = tiny_system.umt5(tmp_path)
    whole = UMT5TextEncoder.from_pretrained(folder)
    layers = UMT5TextEncoder.from_pretrained(folder, device="cpu:0")  # another device than "cpu" by name
    called = []
    for block in layers.model.encoder.block:
        block.register_forward_pre_hook(lambda module, _: called.append(module))
    prompts = ["a red circle", "a blue square moving left"]
    assert torch.equal(layers.encode(prompts), whole.encode(prompts))
    assert called == list(layers.model.encoder.block)
    assert not layers.model.encoder.block[0]._forward_hooks, "nothing is left on a model that others use"


def test_weights_stored_in_float8_or_in_main_memory():
    inputs = {"prompt_embeds": torch.randn(1, 16, 32), "seconds": 1, "seed": 0, "output_type": "latent"}
    plain = tiny_system.pipeline()
    inputs["prompt_embeds"] = torch.randn(1, 16, plain.transformer.config.text_dim)
    expected = plain(**inputs).latents
    layered = tiny_system.pipeline()
    store_weights(layered.transformer, "layers", torch.device("cpu"))  # where they are already, so nothing is copied
    assert torch.equal(layered(**inputs).latents, expected)
    assert not any(hasattr(block, "_diffusers_hook") for block in layered.transformer.blocks)
    with pytest.raises(InputError, match="expected bfloat16"):
        tiny_system.pipeline().set_acceleration("lowest memory")
    stored = tiny_system.pipeline()
    stored.to(torch.bfloat16)
    stored.set_acceleration("lowest memory")
    weights = {name: p.dtype for name, p in stored.transformer.named_parameters()}
    assert weights["blocks.0.attn1.to_q.weight"] == torch.float8_e4m3fn
    assert weights["blocks.0.attn1.norm_q.weight"] != torch.float8_e4m3fn
    latents = stored(**inputs).latents
    assert latents.isfinite().all() and 0 < (latents - expected).norm() / expected.norm() < 0.5
    with pytest.raises(InputError, match="expected a new pipeline"):
        stored.set_acceleration("exact")


class RunsOut(torch.nn.Module):
    """A transformer's block that runs out of memory at a call."""

    def __init__(self, block: torch.nn.Module, at: int) -> None:
        super().__init__()
        self.block, self.left = block, at

    def forward(self, *args, **kwargs):
        self.left -= 1
        if not self.left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
        return self.block(*args, **kwargs)


@pytest.mark.parametrize("call", ["stream", "__call__"])
def test_out_of_memory_ends_in_what_fits_and_finished_blocks_stay(call):
    pipe = tiny_system.pipeline()
    steps = len(pipe.spec.steps)
    pipe.transformer.blocks[0] = RunsOut(pipe.transformer.blocks[0], at=2 * (steps + 1))
    inputs = {"prompt_embeds": torch.randn(1, 16, pipe.transformer.config.text_dim), "seconds": 3, "seed": 0}
    chunks = []
    with pytest.raises(DeviceMemoryError, match="out of memory") as error:
        if call == "stream":
            for chunk in pipe.stream(**inputs):
                chunks.append(chunk)  # noqa: PERF402 - those before the error are wanted
        else:
            pipe(**inputs)
    assert len(str(error.value)) <= 400 and "\n" not in str(error.value)
    if call == "stream":
        assert len(chunks) >= 1


def test_a_report_is_markdown_of_fixed_columns():
    rows = [line for line in plan_report(planned_model("14B"), EXACT, 24 * GB).splitlines() if line.startswith("|")]
    assert all(row.count("|") in (4, 5) for row in rows)
