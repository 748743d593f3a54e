"""A stock ComfyUI MODEL as the engine's model: equal to references and engine, and clear about what cannot be."""

import pytest

PARITY, FAULTS = "bridge", "bridge_faults"


def test_golden_rollouts_hold_in_comfyui(inside):
    errors = inside(PARITY, "goldens")
    assert len(errors) == 16, "eight rollouts, plain and fused"
    assert max(errors.values()) <= 5e-5


def test_guidance_equals_the_engines(inside):
    found = inside(PARITY, "guidance")
    assert found["error"] <= 1e-4 and found["moved"] > 0.1


def test_batches_equal_the_engines(inside):
    assert max(inside(PARITY, "batch").values()) <= 1e-4


def test_every_spelling_of_a_lora_file_gives_core_s_weights(inside):
    found = inside(PARITY, "lora_files")
    assert set(found) == {"peft", "musubi", "lightx2v", "adapter name"} and max(found.values()) <= 1e-5


def test_lora_of_core_equals_lora_of_the_engine(inside):
    found = inside(PARITY, "lora")
    assert max(found["error"], found["error as a hook"]) <= 1e-4 and found["moved"] > 0.02
    assert found["unpatched"] <= 1e-4, "the MODEL without the LoRA is as it was"


def test_fp8_weights_are_exact_and_their_memory_is_not_fp8(inside):
    found = inside(PARITY, "fp8")
    assert found["weights"] == "torch.float8_e4m3fn"
    assert found["memory"] == ["torch.float32", "torch.float32", "torch.bfloat16"]
    assert found["error"] <= 1e-4, "the same rounded weights give the same clip"
    assert found["error of fp8 itself"] > 0.01
    assert found["error as core casts"] <= 1.2 * found["error of fp8 itself"]
    assert found["error in bfloat16"] <= 1.5 * found["error of fp8 itself"]


def test_image_to_video_channels_are_cut_to_the_block(inside):
    found = inside(PARITY, "image_to_video")
    assert max(found["plain"], found["fused"]) <= 1e-4 and found["moved"] > 0.1


def test_conditioning_that_a_memory_cannot_hold_is_refused(inside):
    found = inside(FAULTS, "conditioning")
    assert "positive: found 2 prompts in effect at sigma 1.000, expected 1" in found["combined"]
    assert "positive: found 0 prompts in effect at sigma" in found["off"]
    assert "positive has latents before or behind the clip" in found["ahead"]


def test_a_node_that_skips_layers_is_refused(inside):
    assert "nodes that skip steps or layers" in inside(FAULTS, "skipping")


def test_models_of_another_kind_are_refused(inside):
    found = inside(FAULTS, "wrong_models")
    assert "found WAN21_Vace (VaceWanModel), expected a Wan 2.1" in found["vace"]
    assert "with 32 latent channels), expected a Wan 2.1" in found["channels"]
    assert "found SDXL (UNetModel), expected a Wan 2.1" in found["image"]


def test_cancel_is_seen_within_one_call_and_leaves_nothing_behind(inside):
    assert inside(FAULTS, "cancelled") == {"seen": True, "calls": 4, "clean": True, "equal": True}


def test_an_attention_override_sees_block_and_memory(inside):
    found = inside(FAULTS, "overrides")
    assert found["longest keys"] == 2 * 72 and found["moved"] > 0.01


def test_a_patch_of_self_attention_is_set_aside_and_said_so(inside):
    found = inside(FAULTS, "replaced", warns=True)
    assert found["error"] <= 1e-6 and found["back"]
    assert len(found["messages"]) == 1 and "the KV-cache memory takes its place" in found["messages"][0]


def test_room_is_made_for_one_call_and_the_memory(inside):
    found = inside(FAULTS, "reserving")
    assert found["whole"] == pytest.approx(1) and found["share"] == pytest.approx(0.1)
    assert found["memory"] == pytest.approx(5 << 30) and found["clean"]


def test_fingerprint_knows_patches_and_not_whether_they_are_merged(inside):
    found = inside(FAULTS, "fingerprints")
    assert found["different"] and found["same when merged"] and found["same when read again"]
    assert "the memory was written by another model" in found["refusal"]
    assert found["accepted"] == "nothing was refused"


def test_compiled_models_play_the_same_clip_and_compile_once(inside):
    all_found = inside(FAULTS, "compiled")
    wrapped = all_found.pop("wrapped")
    assert wrapped["error"] <= 1e-5 and wrapped["clean"]
    for found in all_found.values():
        assert found["error"] <= 1e-5 and found["again"] <= 1e-5 and found["graphs"] > 0 and found["more"] == 0
