"""VBench folders: prompt lists, file names, counts and seeds as its tools expect them, and resumed runs."""

import json
import os
from pathlib import Path

import pytest

from salt.io.video import read_video
from salt.pipeline import SaltPipeline
from salt.spec import StudentSpec
from train.evaluation import vbench
from train.evaluation.vbench import Prompt, plan, read_list, sample_all
from train.experiments.tiny.teacher import new_transformer
from train.experiments.tiny.vae import new_vae

INFO = [
    {"prompt_en": "In a still frame, a red circle", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a circle", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
    {"prompt_en": "a circle", "dimension": ["scene", "color"]},
]


def untrained(seed: int = 0) -> SaltPipeline:
    spec = StudentSpec(3, (1000, 500))
    words = dict(dim=4096, max_length=16)
    return SaltPipeline(new_transformer(seed), new_vae(), student=spec, words=words, default_size=(16, 16))


def as_vbench_looks(videos: Path, prompt: str, count: int = 5) -> list[str]:
    """vbench/__init__.py: the extension of the first file listed, then PROMPT-INDEX with that extension."""
    names = os.listdir(videos)
    ending = Path(names[0]).suffix
    return [name for i in range(count) if (name := f"{prompt}-{i}{ending}") in names]


def test_the_info_file_yields_each_prompt_once_with_all_its_dimensions(tmp_path):
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(INFO))
    prompts = read_list(tmp_path / "VBench_full_info.json")
    assert [(p.text, p.dimensions) for p in prompts] == [
        ("In a still frame, a red circle", ("temporal_flickering",)),
        ("a circle", ("color", "scene")),
    ]
    samples = plan(prompts)
    assert [s.index for s in samples] == [*range(25), *range(5)]
    assert [s.index for s in plan(prompts, long=True)] == [*range(5)] * 2
    assert samples[25].file == "a circle-0.mp4"


def test_a_text_list_has_the_dimension_of_its_name(tmp_path):
    for name, count in (("temporal_flickering", 25), ("color", 5), ("all_dimension", 5)):
        (tmp_path / f"{name}.txt").write_text("a circle\n\na square\n")
        prompts = read_list(tmp_path / f"{name}.txt")
        assert [p.text for p in prompts] == ["a circle", "a square"] and len(plan(prompts)) == 2 * count


def test_extended_prompts_are_sampled_under_the_short_name(tmp_path):
    (tmp_path / "all.txt").write_text("a circle\na square\n")
    (tmp_path / "longer.txt").write_text("a red circle moving\na blue square moving\n")
    prompts = read_list(tmp_path / "all.txt", tmp_path / "longer.txt")
    assert [(p.text, p.extended) for p in prompts][1] == ("a square", "a blue square moving")
    (tmp_path / "longer.txt").write_text("one line\n")
    with pytest.raises(ValueError, match="longer.txt: found 1 lines, expected one for each of .*all.txt's 2"):
        read_list(tmp_path / "all.txt", tmp_path / "longer.txt")


def test_seeds_depend_on_prompt_and_index_only():
    one, other = Prompt("a circle", "a circle", ()), Prompt("a square", "a square", ())
    seeds = {(s.file): s.seed for s in plan([one, other])}
    assert len(set(seeds.values())) == 10
    assert {s.file: s.seed for s in plan([other, one], samples=7)}.items() >= seeds.items()
    assert {s.seed for s in plan([one, other], seed=1)}.isdisjoint(seeds.values())


@pytest.mark.parametrize(
    ("text", "long", "complaint"),
    [
        ("a circle/square", False, "contains '/'"),
        ("a_circle", True, "contains '_'"),
        ("é" * 130, False, "found a file name of 266 bytes, expected 255 at most"),
    ],
)
def test_prompts_that_cannot_be_file_names_raise(text, long, complaint):
    with pytest.raises(ValueError, match=complaint):
        plan([Prompt(text, text, ())], long=long)
    plan([Prompt("a" * 210, "", ())])


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '[{"prompt": "a"}]', "[1]"])
def test_files_that_are_no_lists_raise(tmp_path, text):
    (tmp_path / "info.json").write_text(text)
    with pytest.raises(ValueError, match="info.json: expected a JSON list of prompt_en and dimension"):
        read_list(tmp_path / "info.json")
    with pytest.raises(FileNotFoundError, match="nowhere.json: found no such file"):
        read_list(tmp_path / "nowhere.json")


def test_an_interrupted_run_resumes_and_leaves_what_vbench_reads(tmp_path, monkeypatch):
    samples = plan([Prompt("a circle", "a red circle", ("color",)), Prompt("a square.", "a square.", ())], samples=2)
    real, calls = vbench.write_clip, []

    def counted(pipe, prompt, out, seed, request):
        calls.append((prompt, seed))
        made = real(pipe, prompt, out, seed, request)
        if len(calls) == 2:
            raise KeyboardInterrupt  # the second video is complete, but not moved yet
        return made

    monkeypatch.setattr(vbench, "write_clip", counted)
    with pytest.raises(KeyboardInterrupt):
        sample_all(untrained, "mine", samples, tmp_path, 3, num_inference_steps=1)
    assert os.listdir(tmp_path / "videos") == ["a circle-0.mp4"]
    before = (tmp_path / "videos" / "a circle-0.mp4").stat().st_mtime_ns
    table = sample_all(untrained, "mine", samples, tmp_path, 3, num_inference_steps=1)
    assert calls == [(s.prompt.extended, s.seed) for s in (samples[0], samples[1], *samples[1:])]
    assert (tmp_path / "videos" / "a circle-0.mp4").stat().st_mtime_ns == before
    assert sorted(os.listdir(tmp_path)) == ["samples.json", "samples.md", "videos"]
    for prompt in ("a circle", "a square."):
        assert len(as_vbench_looks(tmp_path / "videos", prompt)) == 2
    assert read_video(tmp_path / "videos" / "a square.-1.mp4").shape == (1, 3, 9, 16, 16)
    assert "| color | 1 | 2 of 2 |" in table and (tmp_path / "samples.md").read_text() == table + "\n"
    record = json.loads((tmp_path / "samples.json").read_text())
    assert (record["student"], record["nfe"], record["num_frames"]) == ("mine", 1, 9)
    assert [row["seed"] for row in record["samples"]] == [s.seed for s in samples]
    assert record["samples"][0] == {
        "file": "a circle-0.mp4", "prompt": "a circle", "index": 0, "seed": samples[0].seed, "extended": "a red circle",
        "dimensions": ["color"],
    }  # fmt: skip


def test_a_folder_of_another_student_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(vbench, "write_clip", lambda pipe, prompt, out, seed, request: out.write_bytes(b"video"))
    prompts = [Prompt("a circle", "a circle", ())]
    once = plan(prompts, samples=1)
    sample_all(untrained, "mine", once, tmp_path, 3)
    with pytest.raises(ValueError, match="sampled with nfe 2, expected 4"):
        sample_all(untrained, "mine", once, tmp_path, 3, num_inference_steps=4)
    with pytest.raises(ValueError, match="sampled with fingerprint"):
        sample_all(lambda: untrained(1), "mine", once, tmp_path, 3)
    with pytest.raises(ValueError, match="'a circle-0.mp4' sampled with seed"):
        sample_all(untrained, "mine", plan(prompts, seed=5, samples=1), tmp_path, 3)
    # More prompts of the same student are added, and the record of earlier videos stays.
    sample_all(untrained, "moved", plan([Prompt("a square", "a square", ())], samples=1), tmp_path, 3)
    assert len(json.loads((tmp_path / "samples.json").read_text())["samples"]) == 2
    (tmp_path / "videos" / "holiday.mp4").write_bytes(b"video")
    with pytest.raises(ValueError, match="found 'holiday.mp4', which samples.json does not know"):
        sample_all(untrained, "mine", once, tmp_path, 3)
