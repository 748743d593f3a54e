"""Memory nodes and the semigroup defect in a real ComfyUI."""

import pytest

CASES = "memory_cases.py"


def test_a_saved_memory_goes_on_like_one_that_was_not(inside):
    found = inside(CASES, "files")
    for name in ("plain", "guided"):
        assert found[name]["listed"] == f"salt_memories/{name}_00001_.safetensors [output]"
        assert found[name]["path"] and found[name]["equal"]
    assert found["second name differs"]
    assert "fingerprint differs" in found["other model"] and "guided" in found["other model"]
    assert "none.safetensors [output]: found no such file" in found["absent"]
    assert found["bar"][0]["held"] == list(range(9)) and found["bar"][0]["bytes"] > 0


def test_rewound_and_forked_clips_go_their_own_ways(inside):
    found = inside(CASES, "rewinding")
    assert found["told"] == "at latent frame 6 (1.5 s)" and found["untouched"] == 9
    assert found["again"] <= 1e-4 and found["other"] > 0.1
    assert "1 latent frames forgotten" in found["lost"] or "stay lost" in found["lost"]
    assert "to: found latent frame 400 (100 s), expected 0 to 9" in found["beyond"]


def test_inspection_shows_what_lies_where(inside):
    found = inside(CASES, "inspecting")
    assert "sink:3,window:6,int8" in found["table"] and "0-2, 6-8" in found["table"]
    assert found["table"].count("\n") >= 10
    assert found["size"][2:] == [768, 3] and found["colours"] > 8


def test_predicted_room_is_the_room_that_is_taken(inside):
    found = inside(CASES, "policies")
    assert "window: found 1" in found.pop("small")
    assert len(found) == 6
    for text, told, predicted, taken in found.values():
        assert text.endswith("int8") and text in told and "GB of VRAM" in told
        assert predicted == taken


def test_the_defect_is_the_engines(inside):
    found = inside(CASES, "defect")
    assert found["mean"] == pytest.approx(found["engine"], rel=1e-3) and found["mean"] > 0
    assert "| student | euler |" in found["table"] and "| student | sampler |" in found["table"]
    assert found["image"] == [1, 320, 640, 3] and found["colours"] > 3
    assert "found '1000, 875', expected three falling steps" in found["bad"]
    assert "triples: found t_s 900" in found["off the list"]
