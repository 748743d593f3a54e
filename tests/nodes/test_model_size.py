"""The size that widths and heights of 0 stand for, and what a report says of another. Without a ComfyUI, on stubs."""

from __future__ import annotations

from .test_extension import in_pack

PROGRAM = """
from pathlib import Path
from types import SimpleNamespace
import torch
from safetensors.torch import save_file
from pack.nodes.adapter import model_size
from pack.salt.spec import StudentSpec

class Model:
    pass

def stub(file="", **options):
    # a MODEL that another loader has read from `file`
    return SimpleNamespace(model=Model(), model_options=options, cached_patcher_init=(None, (file,)))

tiny = stub()
model_size.set_size(tiny, (64, 64))
released = stub(salt_student=StudentSpec())
folder = Path(FOLDER)
for name, words in (("own", '{"height": 96, "width": 160}'), ("wrong", '{"height": 96}')):
    save_file({"a": torch.zeros(1)}, folder / f"{name}.safetensors", {"salt_size": words})
own, wrong = (stub(str(folder / f"{name}.safetensors")) for name in ("own", "wrong"))

model_size.pixels_per_latent = lambda model: 16 if model is wide else 8
wide = stub(salt_student=StudentSpec())

def seen(model, *size):
    width, height = model_size.chosen_size(model, *size)
    scale = model_size.pixels_per_latent(model)
    return [width, height, model_size.size_notes(model, (height // scale, width // scale))]

def refused(model):
    try:
        seen(model, 0, 0)
    except ValueError as error:
        return str(error)

result = [
    seen(tiny, 0, 0), seen(tiny, 96, 0), seen(released, 0, 0), seen(released, 480, 832), seen(released, 0, 720),
    seen(wide, 0, 0), seen(wide, 832, 480),
    seen(own, 0, 0), seen(own, 832, 480), refused(wrong).removeprefix(f"{folder}/"),
]
"""
UNTRAINED = "the MODEL was not trained for {} pixels but for {}"


def test_0_is_the_size_that_the_model_was_trained_for_and_another_is_said(tmp_path):
    assert in_pack(PROGRAM.replace("FOLDER)", f"{str(tmp_path)!r})", 1)) == [
        [64, 64, []],
        [96, 64, [UNTRAINED.format("96x64", "64x64")]],
        [832, 480, []],
        [480, 832, [UNTRAINED.format("480x832", "832x480")]],
        [832, 720, [UNTRAINED.format("832x720", "832x480")]],
        [1280, 704, []],
        [832, 480, [UNTRAINED.format("832x480", "1280x704")]],
        [160, 96, []],
        [832, 480, [UNTRAINED.format("832x480", "160x96")]],
        "wrong.safetensors: its metadata salt_size: found height 96 and width 0, expected both",
    ]
