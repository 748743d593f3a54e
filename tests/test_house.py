"""Rules of the house that a reviewer should not have to check by eye."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports absolutely."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def test_the_engine_knows_neither_host():
    files = list((ROOT / "salt").rglob("*.py"))
    assert files
    forbidden = {"nodes", "train", "comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "salt"}
    found = {path.name: names for path in files if (names := forbidden & set(imported(path)))}
    assert not found, "salt/ imports no host, and itself relatively"


def test_pickles_are_only_read_as_weights():
    rooms = [ROOT / room for room in ("salt", "train", "nodes", "benchmarks", "tests")]
    loads = [
        line
        for room in rooms
        for path in room.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\btorch\.load\(", line) and path != Path(__file__)
    ]
    assert loads
    assert [line for line in loads if "weights_only=True" not in line] == []


def test_files_stay_short():
    rooms = [ROOT / room for room in ("salt", "train", "nodes")]
    long = [path.name for room in rooms for path in room.rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert long == []


def test_the_packs_door_opens_on_next_to_nothing():
    """As ComfyUI loads it: by path, under a name that is no Python name, the folder itself not on the path. ComfyUI's
    own modules are played here; what counts is that the door brings nothing heavy with it."""
    program = (
        "import importlib.util, sys, types\n"
        "root = sys.argv[1]\n"
        "api = types.ModuleType('comfy_api'); latest = types.ModuleType('comfy_api.latest')\n"
        "latest.ComfyExtension = object; latest.io = types.SimpleNamespace(ComfyNode=object)\n"
        "sys.modules.update({'comfy_api': api, 'comfy_api.latest': latest})\n"
        "spec = importlib.util.spec_from_file_location('custom_nodes.ComfyUI-Salt', root + '/__init__.py',"
        " submodule_search_locations=[root])\n"
        "module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert callable(module.comfy_entrypoint) and (module.WEB_DIRECTORY)\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'matplotlib', 'peft'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_nodes_wait_for_heavy_libraries_until_they_run():
    """ComfyUI imports every node when it starts; diffusers and what it brings (peft, transformers) take over a second.
    What nodes import of the engine where they are defined must come without them."""
    engine = {
        node.module
        for path in (ROOT / "nodes").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom) and node.level == 2 and (node.module or "").startswith("salt")
    }
    assert "salt.sampling" in engine
    program = f"import importlib, sys\nfor name in {sorted(engine)}: importlib.import_module(name)\n"
    program += "print(sorted({'diffusers', 'transformers', 'accelerate', 'matplotlib', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_requirements_are_the_dependencies_without_torch():
    needed = importlib.metadata.requires("salt-video") or []
    expected = {line.replace(" ", "") for line in needed if "extra ==" not in line and not line.startswith("torch")}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line.strip() for line in lines if line.strip() and not line.startswith("#")} == expected


def test_nothing_but_the_engine_is_installed():
    top = importlib.metadata.distribution("salt-video").read_text("top_level.txt")
    assert top is not None
    assert top.split() == ["salt"]
    console = importlib.metadata.entry_points(group="console_scripts", name="salt")
    assert [point.value for point in console] == ["salt.cli:main"]


def test_the_registry_takes_the_pack():
    """Its rules (docs.comfy.org/registry/specifications): a name without ComfyUI, three numbers, a repository; and what
    is left out of its copy exists, and is nothing that the pack needs."""
    about = importlib.metadata.metadata("salt-video")
    assert "comfyui" not in about["Name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["Version"])
    assert [u for u in about.get_all("Project-URL") or [] if u.startswith("Repository, https://github.com/")]
    lines = (ROOT / ".comfyignore").read_text().splitlines()
    left_out = [line.rstrip("/") for line in lines if line and not line.startswith("#")]
    assert left_out and all((ROOT / name).exists() for name in left_out)
    needed = {"__init__.py", "nodes", "salt", "workflows", "requirements.txt", "pyproject.toml", "LICENSE", "README.md"}
    assert not needed & set(left_out)
