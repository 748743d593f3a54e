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


def test_a_video_into_a_file_is_encoded_as_it_goes(needs_a_vae_of_any_width, inside):  # noqa: F811
    found = inside(CASES, "to_file")
    assert found["0.0"] <= 1 and found["0.5"] <= 1 and found["frames"] == [12, 45]
    assert found["at first"] <= 9, "pixel frames of the first block"
    assert found["report"] == "the clip is 45 frames (2.81 s) long: whole blocks of the video"
    assert found["file"][0] == 6 and found["file"][1] <= 1e-4, "at half the rate: each frame twice"


def test_refusals(needs_a_vae_of_any_width, inside):  # noqa: F811
    found = inside(CASES, "refusals")
    assert "video needs Wan 2.1's VAE connected to vae" in found["vae"]
    assert "video: found 8 frames, expected at least 9" in found["short"]
    assert "video and memory cannot both be connected" in found["memory"]
    assert "video and start_image cannot both be connected" in found["image"]
    assert "strength has no effect without a video" in found["note"]
    assert all(len(message) <= 400 for name, message in found.items() if name != "note")
