"""The lengths of a student's blocks that the page asks for. Without a ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest

from salt.checkpoints import load_student, save_student
from salt.spec import TINY_FOLDER, StudentSpec

from .test_extension import in_pack

PROGRAM = """
from pathlib import Path
from pack.nodes.adapter.loading import student_timing

def said(path, trained_as):
    try:
        return student_timing(Path(path), trained_as)
    except ValueError as error:
        return str(error)

result = [said(LONG, "auto"), said(LONG, "frame by frame"), said(PLAIN, "auto"), said(LONG, "by chance")]
"""


def test_blocks_and_rate_of_a_file(tmp_path: Path) -> None:
    student, files = load_student(TINY_FOLDER), {"LONG": StudentSpec(frames_per_block=8, fps=24), "PLAIN": None}
    program = PROGRAM
    for name, spec in files.items():
        path = save_student(student, tmp_path / f"{name.lower()}.safetensors", spec=spec)
        program = program.replace(name, repr(str(path)))
    known, by_frame, plain, wrong = in_pack(program)
    assert known == {"frames_per_block": 8, "latent_seconds": pytest.approx(1 / 6)}
    assert by_frame == {"frames_per_block": 1, "latent_seconds": pytest.approx(1 / 6)} and plain is None
    assert "found by chance, expected auto, blocks of 3" in wrong
