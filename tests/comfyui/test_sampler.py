"""What core's nodes hand to the sampling nodes: start pictures, latents, students' files, preview settings."""

import pytest

CASES = "sampler"


def test_a_start_picture_of_core_s_node_starts_the_clip(inside):
    found = inside(CASES, "starts")
    assert found["frames"] == 9 and found["begins"] <= 1e-5 and found["error"] <= 1e-4
    assert found["moves"] > 0.01 and found["given"] <= 1e-4, "of a student whose first block begins with it"
    assert found["batch"] == [2, 16, 10, 8, 8] and found["rollout"] <= 1e-6
    added, report = found["extended"]
    assert added == 3 and "the start picture of ARVideoI2V has no effect on a clip that goes on" in report
    messages = {
        "sampler, another size": "model has a start picture of 96x64 pixels (ARVideoI2V), expected the clip's 64x64",
        "rollout, another size": "model has a start picture of 96x64 pixels (ARVideoI2V), expected the clip's 64x64",
        "two starts": "start_image cannot be connected where ARVideoI2V has given the MODEL a start picture",
        "latents too": "latents cannot be connected where ARVideoI2V has given the MODEL a start picture",
        "defect": "model has a start picture, which has no effect here; connect the MODEL before ARVideoI2V",
        "no room": "latent_image: found 1 frame (0.06 s), expected more than the start picture's",
    }
    assert {key: text for key, text in messages.items() if text not in found[key]} == {}, found


def test_a_latent_has_the_meaning_that_the_sigmas_give_it(inside):
    found = inside(CASES, "latents")
    assert found["partial noise"] <= 1e-4 and found["changes"] > 0.01
    messages = {
        "full noise": "latent_image is not empty, and sigmas that start at 1 leave nothing of it",
        "rising": "sigmas: found [1000.0, 500.0, 750.0], expected strictly falling values",
        "empty, partial noise": "sigmas must start at 1, not at 0.833, where latent_image is empty",
        "narrow": "latent_image: found a width of 24 pixels, expected a multiple of 16 (16 or 32)",
        "length": "latent_image: found 37 frames (2.31 s), expected whole blocks of the student: 33 frames (2.06 s) or",
        "width 100": "width: found 100 pixels, expected a multiple of 16 (96 or 112)",
        "width 24": "width: found 24 pixels, expected a multiple of 16 (16 or 32)",
        "height 8": "height: found 8 pixels, expected a multiple of 16 (16)",
        "narrow start": "latents: found a width of 24 pixels, expected a multiple of 16 (16 or 32)",
        "policy": "height: found 100 pixels, expected a multiple of 16 (96 or 112)",
    }
    assert {key: text for key, text in messages.items() if text not in found[key]} == {}, found


def test_steps_of_a_student_s_own_are_taken_or_refused(inside):
    found = inside(CASES, "rules")
    assert max(found["unipc"], found["ode"]) <= 1e-4
    for name, said in (("longlive2", "LongLive 2.0"), ("krea", "Krea realtime"), ("sdv2", "StreamDiffusionV2")):
        sampler, sigmas, defect = found[name]
        for message in (sampler, sigmas):
            assert f"model is a student with the steps of {said}" in message and "use Salt Rollout" in message
        assert "model: found a student with the steps of" in defect and len(defect) < 400


def test_core_s_loader_keeps_what_the_file_says(inside):
    found = inside(CASES, "files")
    assert found["error"] <= 1e-6 and found["policy"] == "sink:3,window:6"
    assert found["sigmas"] == pytest.approx([1, 0.75, 0])
    assert "does not say" not in found["report"]
    assert "the MODEL's file does not say what it was trained for: 4 steps, shift 5" in found["silent"]
    assert "the MODEL's file does not say" in found["moved"]
    assert found["released"] == "sink:3,window:12" and found["clone"]
    assert "model is a bidirectional student" in found["bidirectional"]


def test_the_preview_setting_is_kept(inside):
    found = inside(CASES, "settings")
    best, colours, none = ["LatentColours", "VaePreview"], ["LatentColours"] * 2, ["NoneType"] * 2
    of_prompt = {"none": none, "latent2rgb": colours, "taesd": best}
    of_server = {
        "": best, "--preview-method none": none, "--preview-method=latent2rgb": colours, "--preview-method auto": best
    }  # fmt: skip
    expected = {
        f"{line}, {prompt}": of_prompt.get(prompt, default)
        for line, default in of_server.items()
        for prompt in ("None", "default", *of_prompt)
    }
    assert found["decoders"] == expected
    assert found["pictures"] == 0 and found["bar"]


def test_finished_blocks_do_not_stay_on_the_device(inside):
    found = inside(CASES, "devices")
    assert found["kept"] == [["meta"] * 7] and found["noise"] == [6]
