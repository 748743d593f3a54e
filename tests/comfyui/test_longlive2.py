"""LongLive 2.0 (Wan 2.2 TI2V's shape) in a real ComfyUI."""

CASE = "longlive2"


def test_recorded_rollouts_hold_in_comfyui(inside):
    errors = inside(CASE, "goldens")
    assert len(errors) == 9 and max(errors.values()) <= 5e-5, errors


def test_the_vae_of_wan_2_2_decodes_frame_by_frame(inside):
    found = inside(CASE, "decode")
    assert found["error"] <= 1e-4 and found["spread"] > 0.01 and found["frames"] == 2 * 17


def test_salt_rollout_takes_sizes_and_settings_from_the_model(inside):
    found = inside(CASE, "nodes")
    assert found["shape"] == found["started"] == [1, 48, 16, 4, 4]
    assert found["shots"] == [8] and found["policy"] == "shots:8,window:32,offset:8"
    assert found["first frame"] <= 1e-5
    assert "width: found 48 pixels, expected a multiple of 32" in found["size"]
