"""Salt Rollout with a video, in a real ComfyUI."""

from tests.comfyui.test_tiny import needs_a_vae_of_any_width

__all__ = ["needs_a_vae_of_any_width"]
CASES = "video_in"


def test_strengths(needs_a_vae_of_any_width, inside):  # noqa: F811
    found = inside(CASES, "strengths")
    assert found["equal"] and found["copied"] <= 1e-4 and found["frames"] == 6
    assert found["between"] > 0.05 and found["changed"] > 0.05
    assert "the clip is 21 frames (1.31 s) long: whole blocks of the video" in found["report"]


def test_videos_of_another_rate_and_size(needs_a_vae_of_any_width, inside):  # noqa: F811
    found = inside(CASES, "videos")
    assert found["resampled"] <= 1e-5 and found["frames"] == 6 and found["cut"] <= 1e-4


def test_refusals(needs_a_vae_of_any_width, inside):  # noqa: F811
    found = inside(CASES, "refusals")
    assert "video needs Wan 2.1's VAE connected to vae" in found["vae"]
    assert "video: found 8 frames, expected at least 9" in found["short"]
    assert "video and memory cannot both be connected" in found["memory"]
    assert "video cannot be connected to a clip that starts with a picture" in found["image"]
    assert "strength has no effect without a video" in found["note"]
    assert all(len(message) <= 400 for name, message in found.items() if name != "note")
