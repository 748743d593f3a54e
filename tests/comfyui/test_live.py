"""Salt Live in a real ComfyUI: steered sessions, played again by Salt Rollout; lengths, Cancel, refusals."""

import pytest

CASES = "live"


def test_the_prompts_as_applied_make_the_same_latents(inside):
    found = inside(CASES, "steered")
    for case in found.values():
        assert case["equal"] and case["memory"] == [case["frames"], True] and case["frames"] == 18
        assert case["video"] == 69 and case["report"].endswith(": 69 frames (4.31 s), 6 prompts")
        assert case["times"] == [0.0, 0.5625, 1.3125, 2.0625, 2.8125, 3.5625], (
            "two blends, and what was rewound is gone"
        )


def test_a_session_goes_on_from_a_memory_and_begins_with_a_picture_as_salt_rollout_does(inside):
    found = inside(CASES, "continued")
    assert found["memory"] == [6, 21, 21] and found["extension"]
    assert found["report"] == "60 frames (3.75 s), 3 prompts" and found["picture"] == [True, 7]
    refused = found["refused"]
    assert "policy full does not fit the memory, whose own is sink:3,window:9" in refused["policy"]
    assert "cfg=2.0 needs a memory that was written with guidance" in refused["cfg"]
    assert "start_image and memory cannot both be connected" in refused["both"]
    assert (
        "latents: found a batch of 1 at 48x64 pixels, expected the memory's, a batch of 1 at 64x64"
        in refused["latents"]
    )
    assert "latents: found a batch of 2, expected 1" in refused["batch"]


def test_blocks_begin_with_a_video_or_a_camera(inside):
    found = inside(CASES, "pictures")
    assert found["video"] <= 1e-3 and found["changed"] > 0.01, "strength 1, after another memory"
    assert found["camera"] <= 0.05, "what JPEG leaves of it"
    assert found["report"] == found["said"] == "prompts do not hold what else was changed: pictures"
    assert found["unknown"][0].startswith("InputError: prompt cannot be encoded: unknown word 'dragon'")
    assert "strength" in found["bad"] and "1.5" in found["bad"]


@pytest.mark.slow
def test_a_session_ends_by_its_length_and_by_cancel(inside):
    found = inside(CASES, "other_ends")
    assert found["length"] == 9 and found["guided"] < 1e-4
    assert found["changed"] == "prompts do not hold what else was changed: seed, nfe"
    assert found["paused"] == found["playing"] == "InterruptProcessingException"
    assert len(found["files"]) == 4 and all(found["files"].values()) and found["left"]
    refused = found["refused"]
    assert "unknown word 'dragon'" in refused["word"] and "prompt" in refused["empty"]
    assert "width: found 72" in refused["size"] and "steps: found '500, 700'" in refused["steps"]
