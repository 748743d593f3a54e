"""LongLive 2.0 (Wan 2.2 TI2V's shape) in a real ComfyUI."""

CASE = "longlive2"


def test_recorded_rollouts_hold_in_comfyui(inside):
    errors = inside(CASE, "goldens")
    assert len(errors) == 9 and max(errors.values()) <= 5e-5, errors


def test_the_vae_of_wan_2_2_decodes_frame_by_frame(inside):
    found = inside(CASE, "decode")
    assert found["error"] <= 1e-4 and found["spread"] > 0.01 and found["frames"] == 2 * 17


def test_the_vae_of_wan_2_2_encodes_as_a_stream(inside):
    found = inside(CASE, "encode")
    assert max(found["pieces"], found["start"], found["source"]) <= 1e-4 and found["lengths"] == [1, 0, 7]
    said = "vae: found Wan 2.1's VAE (wan_2.1_vae.safetensors), expected the MODEL's, Wan 2.2's VAE"
    assert said in found["other"] and said in found["start by another"]


def test_a_student_at_24_frames_a_second(inside):
    found = inside(CASE, "rates")
    assert found["rate"] == {"own": "24", "by channels": "24", "set": "12"}
    assert found["file"] == [24.0, 61, "video", "64_00001_.mp4"], "32 frames asked for, whole blocks of 8 latent ones"
    assert found["rewound"] == [6, "at latent frame 6 (1 s)"]
    assert found["saved"] == ["64_00001_.safetensors", 24, 32, 24]
    assert found["source"][:2] == [12, 12] and "found 6 frames, expected at least 29" in found["source"][2]
    assert found["preview"] == 6.0 and found["plan"] == 16
    assert "prompts at 9 s have no effect: the clip's last block begins at 1.333 s" in found["late"]
    assert "width: found 48 pixels, expected a multiple of 32" in found["plan of 48"]


def test_salt_rollout_takes_sizes_and_settings_from_the_model(inside):
    found = inside(CASE, "nodes")
    assert found["shape"] == found["started"] == [1, 48, 16, 4, 4]
    assert found["shots"] == [8] and found["policy"] == "shots:8,window:32,offset:8"
    assert found["first frame"] <= 1e-5
    again, switches, has_prefix = found["live shot"]
    assert again <= 1e-3 and switches == ["keep", "shot"] and has_prefix
    assert max(found["live"], found["guider"]) <= 1e-3, "its first frame is clean, at timestep 0, on every path"
    assert "width: found 48 pixels, expected a multiple of 32" in found["size"]
