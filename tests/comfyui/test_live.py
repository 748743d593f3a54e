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
