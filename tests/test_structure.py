"""Rules about the source tree as a whole: imports, sizes, type annotations, packaging."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import registry_copy

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("salt", "nodes", "train")

MAX_FILES_AT_TOP = 12
MAX_LINES = 400
MAX_ANY_PARAMETERS = 75
MAX_IGNORES_AND_CASTS = 20


def python_files(folders: tuple[str, ...] = SOURCE_FOLDERS, root: Path = ROOT) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module_name(path: Path, root: Path = ROOT) -> str:
    """`salt/memory/cache.py` -> "salt.memory.cache", `salt/memory/__init__.py` -> "salt.memory"."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: set[str], root: Path = ROOT) -> Iterator[str]:
    """The full name of every module that a file imports, wherever in the file the import stands.

    A relative import that leaves the folder it starts in (`..salt.rollout` in `nodes/`, where ComfyUI sees the whole
    repository as one package) is named from `root`. `from package import name` is `package.name` where that is one of
    `modules`, otherwise `package`.
    """
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}" if origin else alias.name
                yield submodule if submodule in modules else origin


def enclosing_packages(module: str) -> set[str]:
    """The module itself and every package around it: what Python runs before the import is done."""
    parts = module.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts) + 1)}


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Each module of the tree with the modules of the tree that it imports, their `__init__` files included."""
    names = {module_name(path, root): path for path in python_files(root=root)}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        imported = set(imported_modules(path, set(names), root))
        packages = {package for module in imported for package in enclosing_packages(module)}
        graph[name] = (imported | packages - enclosing_packages(name)) & set(names)
    return graph


def shortest_circle(graph: dict[str, set[str]], start: str) -> list[str]:
    """The shortest way along imports from a module back to itself; empty if there is none."""
    previous: dict[str, str] = {}
    queue = deque([start])
    while queue:
        module = queue.popleft()
        for other in sorted(graph[module]):
            if other == start:
                circle = [module]
                while circle[-1] != start:
                    circle.append(previous[circle[-1]])
                return circle[::-1]
            if other not in previous:
                previous[other] = module
                queue.append(other)
    return []


def import_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle for every module that is part of any; a circle that several share is listed once."""
    circles: list[list[str]] = []
    for module in sorted(graph):
        circle = shortest_circle(graph, module)
        if circle and all(set(circle) != set(other) for other in circles):
            circles.append(circle)
    return circles


def test_no_import_circle():
    """Imports at module level, under TYPE_CHECKING and inside functions all count. Importing `a.b.c` also imports the
    `__init__` files of `a` and `a.b`, unless they are around the importing module.

    What does not count is the table of names in `salt/__init__.py`: these are strings, resolved when a user reads the
    public API, and no module of the engine reads it (`test_the_engine_does_not_use_its_own_public_api`).
    """
    graph = import_graph()
    assert {"salt", "salt.rollout", "nodes.nodes_rollout", "train.distill"} <= set(graph)
    assert "salt.rollout" in graph["nodes.nodes_rollout"] | graph["nodes.adapter.rollout_runner"]
    circles = import_circles(graph)
    assert not circles, "\n".join(" -> ".join([*circle, circle[0]]) for circle in circles)


@pytest.mark.parametrize(
    "second_import",
    [
        "from .first import Thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .first import Thing",
        "def function():\n    from . import first",
        "from ..user import name",
        "from . import name",
    ],
    ids=["module", "type-checking", "function", "through a third module", "through the package"],
)
def test_the_circle_finder_finds_circles(tmp_path: Path, second_import: str):
    for folder in (*SOURCE_FOLDERS, "salt/part"):
        (tmp_path / folder).mkdir()
    (tmp_path / "salt/part/__init__.py").write_text("from .second import name\n")
    (tmp_path / "salt/part/first.py").write_text("from .second import name\n")
    (tmp_path / "salt/part/second.py").write_text("name = 1\n")
    (tmp_path / "salt/user.py").write_text("from .part.first import name\n")
    assert import_circles(import_graph(tmp_path)) == []
    (tmp_path / "salt/part/second.py").write_text(second_import + "\n")
    circles = import_circles(import_graph(tmp_path))
    assert circles and all("salt.part.second" in circle for circle in circles)


def test_the_engine_imports_no_host_and_itself_relatively():
    files = list((ROOT / "salt").rglob("*.py"))
    assert files
    forbidden = {"nodes", "train", "comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "salt"}
    found = {path.name: names for path in files if (names := forbidden & absolute_imports(path))}
    assert not found, "salt/ imports no host, and itself relatively"


def absolute_imports(path: Path) -> set[str]:
    """The top-level names that a file imports absolutely."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_engine_does_not_use_its_own_public_api():
    """`from .. import load_student` inside `salt/` would be a circle that `test_no_import_circle` cannot see."""
    graph = import_graph()
    assert "salt" in set().union(*(graph[name] for name in graph if name.startswith("train.")))
    assert [name for name in graph if name.startswith("salt.") and "salt" in graph[name]] == []


def test_the_hosts_do_not_import_each_other():
    graph = import_graph()
    for host, other in (("nodes", "train"), ("train", "nodes")):
        modules = [name for name in graph if name.partition(".")[0] == host]
        assert modules
        assert [name for name in modules if any(used.partition(".")[0] == other for used in graph[name])] == []


def test_nothing_else_in_train_imports_the_experiments():
    """Except the list of commands: `python -m train` offers theirs too."""
    graph = import_graph()
    inside = {name for name in graph if name == "train.experiments" or name.startswith("train.experiments.")}
    assert inside
    users = {name for name in graph if name not in inside and graph[name] & inside}
    assert users - {"train.__main__"} == set()


@pytest.mark.parametrize("folder", SOURCE_FOLDERS)
def test_few_files_lie_at_the_top(folder: str):
    files = [path.name for path in (ROOT / folder).iterdir() if path.is_file()]
    assert "__init__.py" in files
    assert len(files) <= MAX_FILES_AT_TOP, sorted(files)


def test_files_stay_short():
    lengths = {module_name(path): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def any_parameters(source: str) -> int:
    """How many parameters are annotated `Any`, `Any | None` or `type[Any]`."""
    count = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            annotations = [ast.unparse(name.annotation) for name in named if name and name.annotation]
            count += sum(bool(re.fullmatch(r"Any( \| None)?|type\[Any\]", annotation)) for annotation in annotations)
    return count


def ignores_and_casts(source: str) -> int:
    return len(re.findall(r"#\s*(?:pyright: ignore|type: ignore)|\bcast\(", source))


def test_the_type_counters_count():
    source = "def f(a: Any, b: 'int', *c: Any, d: Any | None = None, e: list[Any] = [], **f: Any) -> Any: ...\n"
    assert any_parameters(source) == 4
    assert ignores_and_casts("x = cast(int, y)  # pyright: ignore[reportX]\nbroadcast(z)  # type: ignore\n") == 3


def test_few_parameters_are_any():
    counts = {module_name(path): any_parameters(path.read_text()) for path in python_files()}
    assert sum(counts.values()) <= MAX_ANY_PARAMETERS, {name: count for name, count in counts.items() if count}


def test_few_type_errors_are_silenced():
    counts = {module_name(path): ignores_and_casts(path.read_text()) for path in python_files()}
    assert sum(counts.values()) <= MAX_IGNORES_AND_CASTS, {name: count for name, count in counts.items() if count}


def test_pickles_are_only_read_as_weights():
    loads = [
        line
        for path in python_files(("salt", "train", "nodes", "benchmarks", "tests"))
        for line in path.read_text().splitlines()
        if re.search(r"\btorch\.load\(", line) and path != Path(__file__)
    ]
    assert loads
    assert [line for line in loads if "weights_only=True" not in line] == []


def test_importing_the_pack_loads_no_heavy_library():
    """As ComfyUI loads it: by path, under a name that is no Python name, with its folder not on the path. ComfyUI's own
    modules are replaced by stubs."""
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


def test_defining_the_nodes_loads_no_heavy_library():
    """ComfyUI imports every node when it starts; diffusers and what it brings (peft, transformers) take over a second.
    The engine modules that nodes import at module level must come without them."""
    imports = {
        f"from {node.module} import {', '.join(alias.name for alias in node.names)}"
        for path in (ROOT / "nodes").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "salt"
    }
    assert any("MemoryPolicy" in line for line in imports)
    program = "\n".join(["import sys", *sorted(imports), ""])
    program += "print(sorted({'diffusers', 'transformers', 'accelerate', 'matplotlib', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_requirements_are_the_dependencies_without_torch():
    needed = importlib.metadata.requires("salt-video") or []
    expected = {line.replace(" ", "") for line in needed if "extra ==" not in line and not line.startswith("torch")}
    assert listed_requirements("requirements.txt") == expected
    for_training = {line.partition(";")[0].replace(" ", "") for line in needed if re.search("extra == .train", line)}
    assert listed_requirements("requirements-train.txt") == for_training


def listed_requirements(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def test_the_lowest_versions_are_the_bounds():
    """constraints-lowest.txt begins with each bound of what `make test-lowest` installs, as pyproject.toml has it."""
    needed = importlib.metadata.requires("salt-video") or []
    bounds = [
        re.sub(r"(\[.*\])?>=", "==", line.partition(";")[0].replace(" ", ""))
        for line in needed
        if "extra ==" not in line or re.search(r"extra == .(train|dev)", line)
    ]
    assert "torch" in [bound.partition("==")[0] for bound in bounds]
    blocks = (ROOT / "constraints-lowest.txt").read_text().split("\n\n")
    pinned = [line for line in blocks[0].splitlines() if not line.startswith("#")]
    assert sorted(pinned) == sorted(bounds)


def test_only_the_engine_is_installed():
    top = importlib.metadata.distribution("salt-video").read_text("top_level.txt")
    assert top is not None
    assert top.split() == ["salt"]
    console = importlib.metadata.entry_points(group="console_scripts", name="salt")
    assert [point.value for point in console] == ["salt.cli:main"]


def test_the_registry_accepts_the_pack():
    """Its rules (docs.comfy.org/registry/specifications): a name without ComfyUI, three numbers, a repository; and what
    is left out of its copy exists, and is nothing that the pack needs."""
    about = importlib.metadata.metadata("salt-video")
    assert "comfyui" not in about["Name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["Version"])
    assert [u for u in about.get_all("Project-URL") or [] if u.startswith("Repository, https://github.com/")]
    left_out = {line.rstrip("/") for line in registry_copy.left_out()}
    assert left_out and all((ROOT / name).exists() for name in left_out)
    needed = {"__init__.py", "nodes", "salt", "train", "workflows", "pyproject.toml", "LICENSE", "README.md"}
    assert not (needed | {"requirements.txt", "requirements-train.txt"}) & left_out
