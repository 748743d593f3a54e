"""`salt doctor` names what is there and what is missing, and nothing that is broken stops it."""

import struct
import sys

import pytest

from salt.acceleration.attention_backend import BACKENDS
from salt.cli import doctor
from salt.spec import TINY_FOLDER

BROKEN = {
    "empty.safetensors": b"",
    "header.safetensors": struct.pack("<Q", 2**62) + b"{}",
    "json.safetensors": struct.pack("<Q", 9) + b"{not json",
    "cut.safetensors": struct.pack("<Q", 70) + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(70),
    "text.pt": b"not a checkpoint",
    "pickle.pth": b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.",
    "zip.pt": b"PK\x03\x04" + bytes(40),
    "empty.pth": b"",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with nothing but what a test puts into the folder `comfy` and the folder of pulled models."""
    for name in ("comfy", "pulled"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "comfy"))
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "home")
    monkeypatch.setenv("SALT_MODELS", str(tmp_path / "pulled"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "SMI", ("salt-has-no-such-command",))
    return tmp_path


def said():
    found = list(doctor.findings())
    return found, dict(found)


def test_it_names_everything_on_a_machine_that_has_none_of_it(machine, capsys):
    found, by_name = said()
    names = [name for name, _ in found]
    order = ["salt", "system", "driver", "torch", "cuDNN", "attention sdpa", "packages", "ComfyUI", "model"]
    assert [name for name in names if name in order] == order and names[-1] == "memory plan"
    assert [f"attention {name}" for name in BACKENDS] == [name for name in names if name.startswith("attention ")]
    assert by_name["driver"] == "nvidia-smi cannot be run (FileNotFoundError)"
    assert by_name["attention sdpa"] == "torch, installed"
    assert by_name["attention"].startswith("auto takes ")
    assert by_name["memory plan"].startswith("1.3B on ") and "; peak " in by_name["memory plan"]
    assert by_name["COMFYUI_PATH"].endswith("found no comfyui_version.py in it, expected ComfyUI's folder")
    assert by_name["ComfyUI"].startswith("not found") and by_name["model"].startswith("none found")
    doctor.run(None)
    assert all(": " in line for line in capsys.readouterr().out.splitlines())


def test_it_finds_comfyui_and_says_what_its_models_are_and_which_are_broken(machine):
    comfy = machine / "comfy"
    models, packs = comfy / "models" / "diffusion_models", comfy / "custom_nodes"
    models.mkdir(parents=True), (packs / "ComfyUI-Salt").mkdir(parents=True), (packs / "other").mkdir()
    (comfy / "comfyui_version.py").write_text('__version__ = "0.27.0"\n')
    for name, content in BROKEN.items():
        (models / name).write_bytes(content)
    (models / "folder.safetensors").mkdir()
    (models / "gone.safetensors").symlink_to(machine / "nowhere")
    (models / "notes.txt").write_text("not a model")
    (machine / "pulled" / "tiny").symlink_to(TINY_FOLDER)
    found, by_name = said()
    assert by_name["ComfyUI"] == f"0.27.0, {comfy}, this pack is in it, 2 packs" and "COMFYUI_PATH" not in by_name
    listed = dict(value.split(": ", 1) for name, value in found if name == "model")
    broken = {*BROKEN, "folder.safetensors", "gone.safetensors"}
    assert {path.rpartition("/")[2] for path in listed} == {*broken, "tiny"}
    for path, text in listed.items():
        if path.endswith("tiny"):
            assert "B parameters" in text
        else:
            assert text.startswith("not read: ") and "\n" not in text and len(text) < 500, (path, text)
    assert not any(name == "model" and "notes" in value for name, value in found)


def test_it_goes_on_without_torch(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "salt.acceleration.attention_backend", raising=False)
    _, by_name = said()
    assert by_name["torch"].startswith("cannot be imported: ")
    assert by_name["attention"].startswith("its back ends cannot be examined: ") and "memory plan" in by_name
