"""The size that widths and heights of 0 stand for, and what a report says of another. Without a ComfyUI, on stubs."""

from __future__ import annotations

from .test_extension import in_pack

PROGRAM = """
from pathlib import Path
from types import SimpleNamespace
from pack.nodes.adapter import model_size
from pack.salt.spec import TINY_FOLDER, StudentSpec

tiny = SimpleNamespace(model_options={model_size.OPTION: model_size.size_in_folder(TINY_FOLDER / "transformer")})
released = SimpleNamespace(model_options={"salt_student": StudentSpec()})

model_size.pixels_per_latent = lambda model: 16 if model is wide else 8
wide = SimpleNamespace(model_options={"salt_student": StudentSpec()})

def seen(model, *size):
    width, height = model_size.chosen_size(model, *size)
    scale = model_size.pixels_per_latent(model)
    return [width, height, model_size.size_notes(model, (height // scale, width // scale))]

result = [
    seen(tiny, 0, 0), seen(tiny, 96, 0), seen(released, 0, 0), seen(released, 480, 832), seen(released, 0, 720),
    seen(wide, 0, 0), seen(wide, 832, 480),
    model_size.size_in_folder(Path("somewhere/salt_cf.pt")), list(model_size.size_in_folder(TINY_FOLDER)),
]
"""
UNTRAINED = "the MODEL was not trained for {} pixels but for {}"


def test_0_is_the_size_that_the_model_was_trained_for_and_another_is_said():
    assert in_pack(PROGRAM) == [
        [64, 64, []],
        [96, 64, [UNTRAINED.format("96x64", "64x64")]],
        [832, 480, []],
        [480, 832, [UNTRAINED.format("480x832", "832x480")]],
        [832, 720, [UNTRAINED.format("832x720", "832x480")]],
        [1280, 704, []],
        [832, 480, [UNTRAINED.format("832x480", "1280x704")]],
        None,
        [64, 64],
    ]
