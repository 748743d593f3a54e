"""Training from the registry's copy of the pack, as it lies in ComfyUI's custom_nodes."""

import sys

from salt.checkpoints import load_student
from tests.helpers import registry_copy


def test_the_registry_copy_trains(tmp_path):
    pack = registry_copy.unpack(tmp_path / "custom_nodes" / "any name 1.0")
    student = registry_copy.train(pack, sys.executable)
    assert len(load_student(student).blocks) == 4
