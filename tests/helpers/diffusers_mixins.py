"""Test mixins of a diffusers checkout (`DIFFUSERS_PATH`), which an installation of diffusers does not contain."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "diffusers_checkout_tests"  # not `tests`, which is this repository's


def checkout() -> Path | None:
    """The checkout's folder of tests, None where `DIFFUSERS_PATH` names none."""
    folder = Path(os.environ.get("DIFFUSERS_PATH", "")) / "tests"
    return folder if (folder / "pipelines" / "testing_utils").is_dir() else None


def load(name: str) -> ModuleType:
    """The module `tests/NAME` of the checkout. The packages around it are empty, so that nothing else is imported."""
    folder = checkout()
    assert folder is not None
    packages = {PACKAGE: folder}
    for part in ("pipelines", "models"):
        packages[f"{PACKAGE}.{part}"] = folder / part
        packages[f"{PACKAGE}.{part}.testing_utils"] = folder / part / "testing_utils"
    for package, path in packages.items():
        if package not in sys.modules:
            module = ModuleType(package)
            module.__path__ = [str(path)]
            sys.modules[package] = module
    return importlib.import_module(f"{PACKAGE}.{name}")
