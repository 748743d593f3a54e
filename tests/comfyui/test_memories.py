"""Memory nodes and the semigroup defect in a real ComfyUI."""

import pytest

CASES = "memory"


def test_every_node_has_a_schema_that_this_core_takes(inside):
    found = {name: sockets for name, *sockets in inside(CASES, "schemas")}
    assert set(found) == {
        "SaltSaveMemory", "SaltLoadMemory", "SaltInspectMemory", "SaltRewindMemory", "SaltForkMemory",
        "SaltMemoryPolicy", "SaltSemigroupDefect", "SaltPlan",
    }  # fmt: skip
    assert found["SaltMemoryPolicy"] == [12, 2] and found["SaltForkMemory"] == [1, 2]


def test_a_saved_memory_goes_on_like_one_that_was_not(inside):
    found = inside(CASES, "files")
    for name in ("plain", "guided"):
        assert found[name]["listed"] == f"salt_memories/{name}_00001_.safetensors [output]"
        assert found[name]["path"] and found[name]["equal"]
    assert found["second name differs"]
    assert found["files"] == [f"{name}_.safetensors" for name in ("guided_00001", "guided_00002", "plain_00001")]
    assert "fingerprint differs" in found["other model"] and "guided" in found["other model"]
    assert "guided" in found["other heads"] and "2 heads of 128, expected the model's" in found["other heads"]
    assert "none.safetensors [output]: found no such file" in found["absent"]
    assert found["link"] == [] and found["linked"] is True
    assert "cfg=2.0 needs a memory that was written with guidance" in found["guided again"], (
        "its branch was left behind"
    )
    assert found["bar"][0]["held"] == list(range(9)) and found["bar"][0]["bytes"] > 0


def test_prefixes_and_the_newest_file(inside):
    found = inside(CASES, "choices")
    none = found["none"]
    assert none["listed"] == [] and none["valid"] is True and none["again"], "what runs before it may yet save one"
    assert "file newest: found no memory in" in none["said"]
    year, short = found["dates"]
    assert found["first"] == f"{year}/{short}_64x64_%None.seed%_00001_.safetensors"
    assert found["fingerprints"] == [True, True] and found["loaded"] == 9
    assert found["listed"][0] == "salt_memories/b_00001_.safetensors [output]" and len(found["listed"]) == 2
    for name, answer in found["answers"].items():
        assert isinstance(answer, str) and answer.startswith("filename_prefix: found") and len(answer) < 400, name
    assert "expected a name below salt_memories/" in found["answers"]["salt_memories/out/clip"]
    assert "hidden" in found["answers"]["salt_memories/.clip"] and "filename_prefix: found 'clip'" in found["executed"]
    assert found["taken"] == [True] * 4 and found["third"] == "b_00002_.safetensors"
    assert not found["left"], "of a killed run, for another name"
    assert found["expanded"] == "2026-03-04 %date:hh.mm% 4/3 26 50607 %a.b% %width% %year%"
    assert found["outside"].startswith("file: found '../../etc/passwd")


def test_rewound_and_forked_clips_go_their_own_ways(inside):
    found = inside(CASES, "rewinding")
    assert found["report"] == "at latent frame 6 (1.5 s)" and found["untouched"] == 9
    assert found["again"] <= 1e-4 and found["other"] > 0.1
    assert found["from nothing"] <= 1e-4
    assert found["apart"], "a branch is written and the other stays"
    assert found["lost"].endswith("; 3 latent frames forgotten by the window stay lost (3-5)")
    assert found["mixed"].endswith("; the sink keeps what was blended into it since, of latent frames 3-11")
    assert "to: found latent frame 400 (100 s), expected 0 to 9" in found["beyond"]


def test_inspection_shows_what_lies_where(inside):
    found = inside(CASES, "inspecting")
    assert "sink:3,window:6,int8" in found["table"] and "0-2, 6-8" in found["table"]
    assert found["table"].count("\n") >= 10
    assert "sink 0 1 2, then 6 7 8" in found["table"] and "unconditional" not in found["table"]
    assert found["size"][2:] == [768, 3] and found["colours"] > 8
    assert "unconditional branch (cfg): as much again" in found["guided"]
    assert found["ui"] == ["animated", "images", "salt_memory", "text"]


def test_predicted_room_is_the_room_that_is_taken(inside):
    found = inside(CASES, "policies")
    assert "window: found 1" in found.pop("small")
    assert len(found) == 9
    for text, prediction, sizes in found.values():
        assert text.endswith("int8") and text in prediction and "GB of VRAM" in prediction
        assert f"{sizes[1][0] / 1e9:.3g} GB" in prediction
        assert all(predicted == taken > 0 for predicted, taken in sizes)


def test_the_defect_is_the_engines(inside):
    found = inside(CASES, "defect")
    assert found["mean"] == pytest.approx(found["engine"], rel=1e-3) and found["mean"] > 0
    assert "| student | euler |" in found["table"] and "| student | sampler |" in found["table"]
    node, engine = ([float(x) for line in t.splitlines()[2:] for x in line.split("|")[3:-1]] for t in found["whole"])
    assert node == pytest.approx(engine, rel=1e-3, abs=2e-5) and len(node) == 6 and min(node) > 0
    assert "frames_per_block=3 is not supported by bidirectional students" in found["blocks of a clip"]
    assert found["image"] == [1, 320, 640, 3] and found["colours"] > 3
    assert "found '1000, 875', expected three falling steps" in found["bad"]
    assert "triples: found t_s 900" in found["off the list"]


def test_the_plan_of_a_model_counts_its_memory_and_what_would_save(inside):
    found = inside(CASES, "plan")
    assert found["memory"] == found["expected"] > 0 and found["guided"] == 2 * found["memory"]
    assert found["peak"] > 0 and "| precision int8 |" in found["text"]
    assert "Cheapest that fits" in found["text"] and "Nothing fits 1.0 GB" in found["too large"]
    assert "height: found 470" in found["error"]
