"""What strangers' files and servers say: shown as text, checked for types, ranges and sizes, never run."""

import json
import logging
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from salt import cli
from salt.checkpoints import CheckpointError, read_checkpoint
from salt.errors import InputError
from salt.io.fields import Between, FieldError, parse_json, read_fields
from salt.io.model_folders import ModelFolderError, check_model_folder
from salt.io.printable import PrintableFormatter, one_line, printable
from salt.memory import KVMemory, MemoryFileError, MemoryPolicy, load_memory, save_memory
from salt.models.text_encoder import UMT5TextEncoder
from salt.pipeline.clip_limits import check_clip_fits
from salt.pipeline.inputs import PipelineInputs
from salt.pipeline.write_clip import ProgressDisplay
from salt.schedule import step_list
from tests.helpers import tiny_system
from tests.helpers.small_memory import GEOMETRY, write

DEEP = "[" * 100_000
LONG = "9" * 5000


def test_foreign_text_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("\x1b[31mred\u202e\0 日本\u3000é") == "\\x1b[31mred\\u202e\\x00 日本\u3000é"
    long = one_line("start\n" + "x" * 1000 + "\x1b end")
    assert len(long) == 400 and long.startswith("start x") and long.endswith("\\x1b end")
    record = logging.LogRecord("salt", logging.INFO, "", 0, "a\x1b]0;b", None, None)
    assert PrintableFormatter("%(message)s").format(record) == "a\\x1b]0;b"
    with ProgressDisplay("[/x] [red]\x1b[2J :smile:") as display:
        assert display.bar.tasks[0].description == "[/x] [red]\\x1b[2J :smile:"
    assert "[/x] [red]\\x1b[2J :smile:" in capsys.readouterr().out


def test_inspect_shows_metadata_and_errors_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("salt.cli.inspect.describe_file", lambda path: {"[/a]": "[bold]\x1b[1m"})
    assert cli.main(["inspect", str(tmp_path / "[x].pt")]) == 0
    shown = capsys.readouterr().out
    assert "[x].pt" in shown and "[/a]" in shown and "[bold]\\x1b[1m" in shown
    monkeypatch.undo()
    (tmp_path / "\x1b[1m.pt").write_text("x")
    assert cli.main(["inspect", str(tmp_path / "\x1b[1m.pt")]) == cli.FAILED
    assert "\\x1b[1m.pt is a" in capsys.readouterr().err


@dataclass
class Inner:
    number: Annotated[int, Between(1, 9)] = 1


@dataclass
class Outer:
    inner: Inner
    kind: Literal["a", "b"] = "a"
    share: float = 0.0
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], r"the content: found \[\], expected an object"),
        ({}, "inner"),
        ({"inner": {"number": 10}}, r"inner.number: found 10, expected 1 to 9"),
        ({"inner": {"number": True}}, r"inner.number: found True, expected an integer"),
        ({"inner": {"number": int("9" * 4000)}}, r"inner.number: found 9+\.\.\.9+, expected 1 to 9"),
        ({"inner": {}, "kind": {}}, "kind: found {}, expected one of a, b"),
        ({"inner": {}, "share": float("nan")}, "share: found nan, expected a finite number"),
        ({"inner": {}, "names": ["x", 3]}, r"names\[1\]: found 3, expected text"),
        ({"inner": {}, "names": "x"}, "names: found 'x', expected a list"),
    ],
)
def test_fields_of_the_wrong_type_or_range(values: object, expected: str) -> None:
    with pytest.raises(FieldError, match=expected) as caught:
        read_fields(Outer, values)
    assert len(str(caught.value)) < 200
    assert read_fields(Outer, {"inner": {"number": 3}, "names": ["x"], "more": 1}) == Outer(Inner(3), names=("x",))


@pytest.mark.parametrize("text", [DEEP, LONG, '{"a": ' * 100_000, "{", b"\xff\xfe\x00"])
def test_json_that_cannot_be_read(text: str | bytes) -> None:
    with pytest.raises(FieldError, match="found"):
        parse_json(text)


@pytest.mark.parametrize("text", [DEEP, LONG, "[1]", '{"num_layers": "x"}', '{"heads": -1}', '{"ffn_dim": [1]}'])
def test_descriptions_beside_and_in_a_checkpoint(text: str, tmp_path: Path) -> None:
    model = tiny_system.student(text_dim=32)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(weights, path, {"config": text})
    for _ in range(2):
        with pytest.raises(CheckpointError, match="found|it is a") as caught:
            read_checkpoint(path)
        assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 400
        save_file(weights, path, {"salt": '{"steps": ["x"]}'})
        (tmp_path / "config.json").write_text(text)


class Call:
    """Pickled as a call of a function, as an attacker writes it."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple:
        return self.called


def shared_tuples(levels: int) -> tuple:
    value: tuple = (1,)
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"generator": {"x": Call(bytearray, 8_600_000_000)}}, "bytearray"),
        ({"generator": {"x": torch.zeros(1)}, "step": shared_tuples(40)}, "a tuple of more than"),
        ({"generator": {"x": torch.zeros(1).expand(10**5, 10**5)}}, "claims 40,000,000,000 bytes, and 4 are stored"),
        ({"generator": {str(i): x for i, x in enumerate([torch.zeros(10**4)] * 9)}}, "its tensors claim 360,000 bytes"),
        ({"generator": {"x": torch.eye(2).to_sparse()}}, "layout|sparse"),
    ],
)
def test_torch_files_that_claim_more_than_they_hold(content: dict, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_checkpoint(path)
    assert "bomb.pt" in str(caught.value) and len(str(caught.value)) < 400


def test_a_compressed_torch_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"x": "y" * 10**6}, protocol=2))
    with pytest.raises(CheckpointError, match="claims more bytes than the file's"):
        read_checkpoint(tmp_path / "bomb.pt")


def memory_file(path: Path, changes: dict) -> Path:
    """A memory file whose description says something else."""
    memory = KVMemory(MemoryPolicy(), GEOMETRY)
    with torch.no_grad():
        write(memory)
    save_memory(memory, path)
    with safe_open(path, "pt") as file:
        info = json.loads((file.metadata() or {})["salt_memory"])
    save_file(load_file(path), path, {"salt_memory": json.dumps(info | changes)})
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"geometry": {**GEOMETRY.to_dict(), "heads": 10**6}}, r"layers.0.k: found \(1, 3, 2, 2, 8\), expected shape"),
        ({"geometry": {**GEOMETRY.to_dict(), "heads": "2"}}, "geometry.heads: found '2', expected an integer"),
        ({"geometry": {**GEOMETRY.to_dict(), "width": 10**30}}, r"geometry.width: found 1000.*, expected 1 to"),
        ({"policy": {"kind": "window", "window": 10**11}, "next_frame": 10**12}, r"GB, .* are free on cpu"),
        ({"policy": {"kind": "elephant"}}, "policy.kind: found 'elephant'"),
        ({"policy": None}, "policy: found None, expected an object"),
        ({"next_frame": 10**9}, "held: found 3 frames, expected 1000000000"),
        ({"held": [2, 1, 0]}, "held: found"),
        ({"held": ["a"]}, r"held\[0\]: found 'a'"),
        ({"dtype": "Tensor"}, "dtype: found 'Tensor', expected one of"),
        ({"context_sigma": 1e999}, "context_sigma: found inf"),
    ],
)
def test_memory_files_that_claim_something_else(changes: dict, expected: str, tmp_path: Path) -> None:
    path = memory_file(tmp_path / "m.safetensors", changes)
    with pytest.raises(MemoryFileError, match=expected) as caught:
        load_memory(path)
    assert "m.safetensors" in str(caught.value) and len(str(caught.value)) < 400


def test_inspect_names_the_field_of_a_damaged_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = memory_file(tmp_path / "m.safetensors", {"origin": "x"})
    assert cli.main(["inspect", str(path)]) == cli.FAILED
    assert (
        "m.safetensors: its description `salt_memory`: origin: found 'x', expected an integer"
        in capsys.readouterr().err
    )


@torch.no_grad()
def test_a_window_grows_with_its_clip_and_views_stay_valid() -> None:
    grown, whole = KVMemory(MemoryPolicy("sink", 12, 3), GEOMETRY), KVMemory(MemoryPolicy("sink", 12, 3), GEOMETRY)
    whole.allocated(12)
    torch.manual_seed(0)
    write(grown)
    torch.manual_seed(0)
    write(whole)
    assert grown.store is not None and whole.store is not None
    assert grown.nbytes * 4 == whole.nbytes == whole.estimate_bytes(21)
    view, before = grown.store.view(0, 3)[0], grown.store.view(0, 3)[0].clone()
    for seed in range(6):
        for memory in (grown, whole):
            torch.manual_seed(seed)
            write(memory)
    assert grown.nbytes == whole.nbytes and torch.equal(view, before)
    for mine, theirs in zip(grown.store.buffers[1], whole.store.buffers[1], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("arguments", "field", "fits"),
    [
        ({"seconds": 1e9}, "seconds", "1.0 GB are free on cpu; at most "),
        ({"seconds": 1e9, "memory_policy": "window:12"}, "seconds", "expected at most 1,000.0 GB; at most "),
        ({"seconds": 1e300}, "seconds", "seconds fit"),
        ({"num_frames": 10**400}, "num_frames", "seconds fit"),
        ({"width": 160_000, "height": 160_000}, "width", "pixels fit"),
        ({"num_videos_per_prompt": 10**6, "height": 480, "width": 832}, "num_videos_per_prompt", "clips fit"),
        ({"memory_policy": "window:1000000"}, "memory_policy", "latent frames fit"),
    ],
)
def test_requests_that_do_not_fit(arguments: dict, field: str, fits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salt.acceleration.free_memory.free_bytes", lambda device: 10**9)
    pipe = tiny_system.pipeline()
    size = (arguments.get("height", 32), arguments.get("width", 32))
    with pytest.raises(InputError) as caught:
        check_clip_fits(pipe.components_in_use(), PipelineInputs(prompt="", **arguments), size)
    assert caught.value.field == field and fits in str(caught.value) and "GB" in str(caught.value)
    check_clip_fits(pipe.components_in_use(), PipelineInputs(prompt="", seconds=5), (32, 32))


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("model_index.json", "vae", 5, "vae: found 5, expected a library of diffusers, transformers, salt and a class"),
        (
            "model_index.json",
            "transformer",
            ["os", "system"],
            "transformer: found .*os.*, expected a library",
        ),
        ("transformer/config.json", "num_layers", 10**6, "num_layers: found 1000000, expected 1 to 1000"),
        ("transformer/config.json", "patch_size", [1, 2], r"patch_size: found \[1, 2\], expected values such as"),
        ("transformer/config.json", "ffn_dim", 64, "model: cannot be loaded: "),
    ],
)
def test_pipeline_folders_are_checked_before_models_are_built(
    name: str, key: str, value: object, expected: str, tmp_path: Path
) -> None:
    folder = tiny_system.folder(tmp_path / "model")
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(values | {key: value}))
    with pytest.raises(ValueError, match=expected):
        type(tiny_system.pipeline()).from_pretrained(folder)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_that_a_folder_lacks_are_named(part: str, tmp_path: Path) -> None:
    folder = tiny_system.folder(tmp_path / "model")
    path = folder / part / "diffusion_pytorch_model.safetensors"
    tensors = {name: x.clone() for name, x in load_file(path).items()}
    lost = sorted(tensors)[0]
    save_file({name: x for name, x in tensors.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(ModelFolderError, match=f"model/{part}: found no {lost} .1 weights are missing"):
        type(tiny_system.pipeline()).from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ModelFolderError, match=f"{part}/diffusion_pytorch_model.safetensors: is damaged or cut short"):
        type(tiny_system.pipeline()).from_pretrained(folder)


def test_a_window_takes_no_more_than_the_clip_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    components = tiny_system.pipeline().components_in_use()
    monkeypatch.setattr("salt.acceleration.free_memory.free_bytes", lambda device: 10**6)
    check_clip_fits(components, PipelineInputs(prompt="", seconds=5, memory_policy="window:9000"), (32, 32))
    with pytest.raises(InputError, match=r"memory_policy: .*a window of 900 latent frames \(225 s\) needs"):
        check_clip_fits(components, PipelineInputs(prompt="", seconds=500, memory_policy="window:900"), (32, 32))


def test_more_steps_than_there_are_timesteps() -> None:
    with pytest.raises(InputError, match="found 1000000000, expected 1 to 1000"):
        step_list(10**9)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("text_encoder/config.json", '{"auto_map": {"AutoModel": "evil.Model"}}', "auto_map .*Python code"),
        ("tokenizer/tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}', "Python code"),
        ("text_encoder/config.json", DEEP, "nested too deeply"),
        ("text_encoder/model.safetensors.index.json", '{"weight_map": {"x": "../../y"}}', "weight_map: found the file"),
        ("text_encoder/config.json", '{"d_model": "x"}', "d_model: found 'x', expected an integer"),
        ("text_encoder/pytorch_model.bin", "", "found a pickle, expected weights in safetensors"),
    ],
)
def test_model_folders_that_are_not_read(name: str, text: str, expected: str, tmp_path: Path) -> None:
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    (tmp_path / name).write_text(text)
    checks = (UMT5TextEncoder.from_pretrained, *([] if "d_model" in text else [check_model_folder]))
    for check in checks:
        with pytest.raises(ModelFolderError, match=expected) as caught:
            check(tmp_path)
        assert name in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("z_dim", "x"), ("dim_mult", 3), ("dim_mult", [1, "x"]), ("z_dim", 10**9), ("z_dim", 0), ("dim_mult", [])),
        ("num_res_blocks", 10**6),
    ],
)
def test_a_vae_config_of_other_types(key: str, value: object, tmp_path: Path) -> None:
    folder = tiny_system.folder(tmp_path / "system")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    with pytest.raises(ModelFolderError, match=rf"vae/config.json: {key}.*: found"):
        type(tiny_system.pipeline()).from_pretrained(folder)
