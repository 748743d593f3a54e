"""The evaluate command, from arguments to tables and JSON, with an untrained pipeline of the Shapes world."""

import json
from dataclasses import replace

import pytest
import torch

from salt.checkpoints import save_wan
from salt.checkpoints.families import STREAMDIFFUSION2
from salt.models.word_embedder import WordEmbedder
from salt.pipeline import SaltPipeline
from salt.spec import StudentSpec
from train.__main__ import main
from train.evaluation.sampling import student_clips
from train.experiments.tiny.teacher import new_transformer
from train.experiments.tiny.vae import new_vae
from train.shapes.bench import score_clip
from train.shapes.world import SCENES, render


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    """A pipeline's folder; its transformer is a diffusers folder by itself."""
    spec, folder = StudentSpec(3, (1000, 500)), tmp_path_factory.mktemp("system")
    words = dict(dim=4096, max_length=16)
    SaltPipeline(new_transformer(0), new_vae(), student=spec, words=words, default_size=(64, 64)).save_pretrained(
        folder
    )
    return folder


def run(*arguments) -> int:
    return main(["evaluate", "--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize("student", [".", "transformer"])
def test_defect_writes_its_table_and_figures(pipeline_folder, tmp_path, capsys, student):
    options = ["--limit", 3, "--batch", 2, "--frames", 3, "--triples", "875,750,500", "--samples", 2]
    assert run(pipeline_folder / student, "--bench", "defect", *options, "--out", tmp_path / "mine") == 0
    table = (tmp_path / "mine.md").read_text()
    assert table.splitlines()[0] == "| | operator | 875,750,500 | mean |" and table in capsys.readouterr().out
    written = json.loads((tmp_path / "mine.json").read_text())
    assert (written["prompts"], written["seeds"], written["frames"], len(written["steps"])) == (3, [0, 1], 3, 8)
    assert [(d["operator"], d["triple"]) for d in written["defects"]] == [
        ("euler", [875, 750, 500]),
        ("sampler", [875, 750, 500]),
    ]
    assert all(0 < d["defect"] < 100 for d in written["defects"])


def test_several_benches_write_into_one_folder(pipeline_folder, tmp_path):
    prompts = tmp_path / "color.txt"
    prompts.write_text("a slow red circle moving right\na fast blue square moving up\n")
    options = ["--prompts", prompts, "--limit", 1, "--samples", 1, "--frames", 3, "--steps", 1]
    assert run(pipeline_folder, "--bench", "drift", "vbench", "vbench-long", *options, "--out", tmp_path / "all") == 0
    drift = json.loads((tmp_path / "all" / "drift.json").read_text())
    assert drift["student, 1 steps"]["windows"][0]["shapes"]["passed"] == 0
    assert "| student, 1 steps | 0-2 | 1.000 |" in (tmp_path / "all" / "drift.md").read_text()
    for name in ("vbench", "vbench-long"):
        assert [p.name for p in (tmp_path / "all" / name / "videos").iterdir()] == [
            "a slow red circle moving right-0.mp4"
        ]
        record = json.loads((tmp_path / "all" / name / "samples.json").read_text())
        assert record["nfe"] == 1 and record["samples"][0]["dimensions"] == ["color"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "student: found none, expected a checkpoint or folder"),
        (["nowhere", "--bench", "defect"], "nowhere: found no such file or folder, expected a model"),
        (["nowhere"], "nowhere"),
        (["{folder}", "--prompts", "my.txt"], "has no effect on --bench shapes, only on defect or drift or vbench or"),
        (["{folder}", "--bench", "defect", "--steps", "4"], "has no effect on --bench defect, only on shapes or drift"),
        (
            ["{folder}", "--bench", "drift", "--seeds", "4"],
            "--seeds=[4] has no effect on --bench drift, only",
        ),
        (["nowhere", "--device", "foo"], "--device: found foo, expected cpu"),
        (["{folder}", "--bench", "defect", "--triples", "900,500,0"], "found t_s 900, expected one of 1000, 875"),
        (["{folder}", "--bench", "defect", "--triples", "900,500"], "triples: found '900,500', expected three"),
        (["{folder}", "--bench", "defect", "--memory", "sideways"], "sideways"),
        (["{folder}", "--bench", "drift", "--frames", "4"], "--frames: found 4, expected 3 or 6 (blocks of 3"),
        (
            ["{folder}", "--bench", "vbench", "--prompts", "{folder}/a.txt", "--frames", "2"],
            "--frames: found 2, expected 3",
        ),
        (["nowhere", "--bench", "defect", "--out", "/proc/ev"], "/proc/ev.md: cannot write to folder /proc"),
        (["{folder}", "--bench", "vbench"], "--prompts: found none, expected VBench_full_info.json"),
        (["{folder}", "--bench", "vbench", "--prompts", "none.txt"], "none.txt: found no such file"),
        (["{folder}", "--bench", "vbench", "--prompts", "none.txt", "--steps", "2", "4"], "--steps: found 2 4"),
        (["{folder}", "--bench", "drift", "--samples", "0"], "--samples: found 0, expected 1 or more"),
    ],
)
def test_errors_are_one_line(pipeline_folder, tmp_path, capsys, arguments, complaint):
    (pipeline_folder / "a.txt").write_text("a slow red circle moving right\n")
    assert run("--out", tmp_path / "out", *(a.format(folder=pipeline_folder) for a in arguments)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and complaint in line
    assert not list(tmp_path.iterdir())


def test_a_student_of_another_world_needs_prompts(pipeline_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("salt.pipeline.SaltPipeline.prompt_encoder", object())
    assert run(pipeline_folder, "--bench", "defect", "--out", tmp_path / "out") == 2
    assert "--prompts: found none, expected a file of them" in capsys.readouterr().err


UNIPC = StudentSpec(3, (1000, 500), 3.0, rule="longlive2", stepping="unipc")
SPECS = [StudentSpec(n, (1000, 500), shift=3.0) for n in (0, 1, 3)] + [UNIPC, replace(STREAMDIFFUSION2, shift=3.0)]


@pytest.mark.parametrize("spec", SPECS, ids=["whole", "1", "3", "unipc", "sdv2"])
def test_shapebench_samples_any_checkpoint_by_its_spec(tmp_path, monkeypatch, capsys, spec):
    sampled = []
    new_vae().save_pretrained(tmp_path / "vae")
    save_wan(new_transformer(0), tmp_path / "mine.safetensors", spec=spec, dtype=torch.float32)

    def recorded(model, vae, steps, **options):
        text = WordEmbedder().encode([SCENES[0].caption])
        sampled.append(student_clips(model, text, steps, 3, 7, options["spec"]))
        return [score_clip(render(SCENES[:1], 9, torch.Generator()).pixels[0], SCENES[0])]

    monkeypatch.setattr("train.evaluation.shapebench.score_model", recorded)
    arguments = ["--vae", tmp_path / "vae", "--steps", 2, "--limit", 9, "--out", tmp_path / "out.v1"]
    assert run(tmp_path / "mine.safetensors", *arguments) == 0 and len(sampled) == 2
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("student, 2 steps: 2 of 2 batches of 8 clips, left 0:00:00")]
    written = [tmp_path / f"out.v1.{suffix}" for suffix in ("md", "json")]
    assert f"written: {written[0]}, {written[1]}" in said and all(path.is_file() for path in written)
    assert said[-2].startswith("next: python -m salt.cli generate") and said[-1].startswith("ComfyUI: copy")
    pipe = SaltPipeline.from_single_file(tmp_path / "mine.safetensors", parts=parts_of(tmp_path))
    clip = pipe(SCENES[0].caption, num_frames=9, seed=7, num_inference_steps=2, output_type="latent").latents
    assert torch.allclose(sampled[0], clip, atol=1e-4)


def parts_of(folder):
    """Make `folder`, which has a vae/, a folder of pipeline parts with the Shapes world's words; returns it."""
    words = {"words": dict(dim=4096, max_length=16), "default_size": [64, 64]}
    (folder / "model_index.json").write_text(json.dumps(words))
    return folder
