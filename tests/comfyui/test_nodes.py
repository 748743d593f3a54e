"""The sampling nodes in a real ComfyUI: equal to the engine's own pipeline, clear about what they refuse."""

import pytest

CASES = "nodes"


def test_rollouts_equal_the_pipelines(inside):
    found = inside(CASES, "parity")
    assert len(found) == 8 and max(found.values()) <= 1e-4


def test_an_extension_equals_the_clip_made_in_one_go(inside):
    found = inside(CASES, "extension")
    assert found.pop("rewound") <= 1e-4
    for case in found.values():
        assert case["error"] <= 1e-4 and case["memory untouched"]
        assert case["frames"][0] < case["frames"][1] == case["frames"][2]
        assert "frames per second" in case["report"]


def test_inputs_without_effect_are_in_the_report(inside):
    found = inside(CASES, "without_effect")
    assert found["cfg 1"].endswith("; negative has no effect at cfg 1")
    assert "no effect" not in found["cfg 2"]
    assert found["first block"].endswith("; nfe 4, then 2: all blocks took 2, because the clip goes on from a memory")
    assert found["late"].endswith("; prompts at 9 s have no effect: the clip's last block begins at 1.5 s")
    assert "block 1 of 3 (latent frames 0 to 2): the student's output is not finite" in found["nan"]


def test_what_cannot_be_is_said_with_what_to_do(inside):
    found = inside(CASES, "refusals")
    messages = {
        "plain": "load it with Load Salt Student, or, if the file is an autoregressive student all the same",
        "plain by the user's word": "nothing was refused",
        "bidirectional": "model is a bidirectional student",
        "no prompt": "positive or prompts must be connected",
        "cfg": "cfg=2.0 needs a negative conditioning",
        "mask": "latents must not have a noise mask",
        "image latent": "expected a Wan video [B, 16, F, H, W]",
        "no vae": "start_image needs Wan 2.1's VAE connected to vae",
        "sigmas": "nfe chooses 4 steps for the first block and 2 for the others, which SIGMAS cannot hold",
        "steps": "steps: found '500, 700', expected falling numbers",
        "size": "width: found 72 pixels, expected a multiple of 16 (64 or 80)",
        "other model": "memory was written by another model or LoRA: its fingerprint differs (found ",
        "other model's patches": " with a LoRA or other patch (1 weight at 0.5))",
        "policy beside a memory": "policy window:6 does not fit the memory, whose own is relative:3,window:12",
        "other size": "found a batch of 1 at 96x64 pixels, expected the memory's, a batch of 1 at 64x64",
        "other batch": "found a batch of 2 at 64x64 pixels",
        "short clip": "latents: found a clip of 9 frames (0.56 s), expected the memory's 33 frames (2.06 s)",
        "window": "window: found 2, expected at least 3",
        "recache after the end": "nothing was refused",
        "recache alone": "prompts with a recache after a memory need the clip so far connected to latents",
    }
    assert {key: text for key, text in messages.items() if text not in found[key]} == {}, found


def test_a_cancelled_run_leaves_everything_usable(inside):
    found = inside(CASES, "cancelled")
    assert found["message"].startswith("InterruptProcessingException") and found["calls"] == 5 and found["equal"]


def test_core_s_custom_sampling_plays_the_rollout(inside):
    found = inside(CASES, "custom_sampling")
    assert found["error"] <= 1e-4 and found["guidance moves"] > 0.01
    assert found["bidirectional by core's euler"] <= 1e-4
    assert "latent_image must not have a noise mask" in found["mask"]
    assert "sigmas must end at 0, not at 0.833" in found["half a schedule"]
    assert "guider that guides by" in found["two guidances"]


def test_every_form_of_a_student_loads_and_remembers_what_it_is(inside):
    found = inside(CASES, "loaders")
    assert found["auto"][:2] == [4, 1.5] and found["regular"][:2] == [4, 1.0]
    assert found["safetensors"][:2] == found["folder"][:2] == [2, 1.0]
    assert found["fp8"][2] == "torch.float8_e4m3fn" and found["plain, trained as"][0] == 4
    assert "cut.safetensors is damaged or cut short" in found["cut"]
    assert "image.pt" in found["image"] and "Stable Diffusion UNet" in found["image"]
    assert "nothing.pt: found no such file, expected it in one of" in found["absent"]
    assert found["deep"] == "deep.safetensors", "a folder called diffusers below models/diffusion_models"


def test_steps_and_shift_are_the_student_s_unless_asked_otherwise(inside):
    found = inside(CASES, "step_lists")
    assert found["the student's"] == pytest.approx([1, 0.75, 0])  # 3 u / (1 + 2 u) at u = 0.5
    assert found["its shift"] == pytest.approx([1, 0.5, 0])
    assert found["another shift"] == pytest.approx([1, 5 / 6, 0])
    assert found["no student"] == pytest.approx([1, 15 / 16, 5 / 6, 5 / 8, 0])


def test_previews_move_and_progress_rises(inside):
    found = inside(CASES, "previews", warns=True)
    assert found["frames"] == [3, 6, 9] and max(found["size"]) == 256
    assert found["rising"] and found["colours"] > 3
    assert found["full before the end"] == found["blended, full before the end"] <= 1
    assert found["taehv"] == [9, 21, 33] and found["damaged taehv"] == [3, 6, 9]


def test_a_clip_begins_with_its_start_image(inside):
    found = inside(CASES, "starts")
    assert found["frames"] == found["stands"] == 7 and found["whole"]
    assert found["difference"] < 0.1 and found["from latents"] <= 1e-3
    assert found["pictures"] == [13, 25]


def test_a_preview_that_sends_the_model_away_changes_nothing(inside):
    found = inside(CASES, "evictions")
    assert found["lora"] > 0.01 and found["kept"] <= 1e-4 and found["evicted"] <= 1e-4 and found["pictures"]


def test_core_makes_room_for_the_largest_forward(inside):
    assert inside(CASES, "reservation") == {"fused": 6, "plain": 3, "full": 18, "window": 12}
