"""What leaves nodes out of the extension, and how errors of the engine name widgets. Without a ComfyUI, on stubs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def in_pack(program: str) -> Any:
    """What `program` assigns to `result`, in a process that has imported the pack as `pack`."""
    start = f"import json, sys\nsys.path.insert(0, {str(HERE)!r})\nimport schemas\nschemas.import_pack()\n"
    command = [sys.executable, "-c", f"{start}{program}\nprint(json.dumps(result))"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


REGISTER = """
import asyncio
import pack.nodes as extension

load = extension.importlib.import_module

def fail(name, package=None):
    if name == ".nodes_decode":
        raise {error}("no such thing")
    return load(name, package)

extension.importlib.import_module = fail
try:
    nodes = asyncio.run(extension.SaltExtension().get_node_list())
    result = [node.__name__ for node in nodes]
except AttributeError as error:
    result = str(error)
"""


def test_a_missing_package_leaves_out_the_nodes_that_need_it():
    names = in_pack(REGISTER.format(error="ImportError"))
    assert "SaltDecode" not in names and "SaltRollout" in names and len(names) == 17


def test_a_mistake_of_ours_leaves_out_nothing_silently():
    assert in_pack(REGISTER.format(error="AttributeError")) == "no such thing"


def test_a_missing_requirement_is_answered_with_the_command_that_installs_it():
    program = """
import asyncio
import pack
from pack.nodes.adapter import routes, running

def add_routes(server):
    raise ModuleNotFoundError("No module named 'imageio_ffmpeg'")

routes.add_routes, running.prompt_server = add_routes, object
try:
    asyncio.run(pack.comfy_entrypoint())
except ImportError as error:
    result = str(error)
"""
    said = in_pack(program)
    assert "imageio_ffmpeg" in said and f'"{sys.executable}" -m pip install -r "' in said
    assert said.endswith(f'{HERE.parents[1] / "requirements.txt"}"')


def test_errors_about_fields_of_the_engine_name_the_widget():
    program = """
from pack.nodes.adapter.input_errors import widget_names
from pack.salt.errors import InputError

def said(*error, **widgets):
    try:
        with widget_names(**widgets):
            raise InputError(*error)
    except InputError as found:
        return [found.field, str(found)]

result = [
    said("guidance", "needs a negative conditioning", 3.0),
    said("frames", "found 7 latent frames, expected 6 or 9"),
    said("frames", "found 7 latent frames, expected 6 or 9", frames="latent_image"),
    said("window", "found 2, expected at least 3"),
]
"""
    assert in_pack(program) == [
        ["cfg", "cfg=3.0 needs a negative conditioning"],
        ["seconds", "seconds: found 7 latent frames, expected 6 or 9"],
        ["latent_image", "latent_image: found 7 latent frames, expected 6 or 9"],
        ["window", "window: found 2, expected at least 3"],
    ]


PATCHES = """
from torch import nn
from pack.nodes.adapter.method_patch import patched_method
from pack.nodes.adapter.patch_names import patch_name, words_of

layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
theirs = lambda x: x
result = [patched_method(layer) is None]
layer.forward = theirs
result.append(patched_method(layer) is theirs)
layer.forward = other.forward.__func__.__get__(layer)
result.append(patched_method(layer) is None)

class APG:
    def execute(self, scale):
        def pre_cfg(args):
            return args["conds_out"] if scale else helper(args)
        return pre_cfg

import sys, types
names = types.ModuleType("nodes")
function = APG().execute(1)
result.append(patch_name(function))
names.NODE_CLASS_MAPPINGS, names.NODE_DISPLAY_NAME_MAPPINGS = {"APG": APG}, {"APG": "Projected Guidance"}
sys.modules["nodes"] = names
result += [patch_name(function), sorted(words_of(function))]
"""


def test_patches_are_told_from_their_marks_and_named_by_node():
    *told, alone, shown, words = in_pack(PATCHES)
    assert told == [True, True, True], "none; theirs; the class's own, left on the instance by core"
    assert alone == "APG" and shown == "APG (Projected Guidance)" and words == ["conds_out", "helper"]


SOCKETS = """
import asyncio
import inspect
import folder_paths
import pack.nodes as extension

folder_paths.get_output_directory = lambda: "/output"
nodes = {node.__name__: node for node in asyncio.run(extension.SaltExtension().get_node_list())}

def answer(name, sockets, **widgets):
    # As core asks: with what is connected or set and the function names; it reports under those.
    node = nodes[name]
    has = {slot.id for slot in node.define_schema().inputs}
    assert has >= {*sockets, *widgets}, (name, sockets)
    there = {"model": None, "filename_prefix": None, "cfg": 1.0, **dict.fromkeys(sockets), **widgets}
    named = inspect.getfullargspec(node.validate_inputs).args
    given = {key: value for key, value in there.items() if key in named and key in has}
    assert given, "or core would report nothing"
    return node.validate_inputs(**given)

result = [answer(name, sockets.split(), **widgets) for name, sockets, widgets in %r]
"""
PROMPT_NEEDED = "connect CLIP Text Encode to positive, or Salt Prompt Schedule to prompts"
# Node, its sockets that are connected, its widgets; what is said, True for nothing.
CONNECTIONS = [
    ("SaltRollout", "", {}, PROMPT_NEEDED),
    ("SaltExtendVideo", "", {}, PROMPT_NEEDED),
    ("SaltRolloutToVideo", "vae", {}, PROMPT_NEEDED),
    ("SaltRollout", "positive", {}, True),
    ("SaltRollout", "prompts", {"cfg": None}, True),
    ("SaltRollout", "positive prompts", {}, "positive and prompts cannot both be connected"),
    ("SaltRollout", "positive", {"cfg": 3.0}, "cfg=3.0 needs a negative conditioning connected to negative"),
    ("SaltRollout", "positive negative", {"cfg": 3.0}, True),
    ("SaltRollout", "positive", {"cfg": 31.0}, "cfg: found 31, expected 0 to 30"),
    ("SaltRollout", "positive", {"cfg": float("nan")}, "cfg: found nan, expected 0 to 30"),
    ("SaltRollout", "positive start_image", {}, "start_image needs Wan 2.1's VAE connected to vae, or Wan 2.2's"),
    ("SaltRollout", "positive start_image vae", {}, True),
    ("SaltRollout", "positive video", {}, "video needs Wan 2.1's VAE connected to vae"),
    ("SaltRollout", "positive video vae start_image", {}, "video and start_image cannot both be connected"),
    ("SaltRollout", "positive video vae latents", {}, "video and latents cannot both be connected"),
    ("SaltRollout", "positive video vae memory", {}, "video and memory cannot both be connected"),
    ("SaltRollout", "positive memory latents", {}, True),
    ("SaltExtendVideo", "positive", {}, True),
    ("SaltExtendVideo", "positive", {"cfg": 2.0}, "cfg=2.0 needs a negative conditioning connected to negative"),
    ("SaltRolloutToVideo", "positive", {}, "vae needs Wan 2.1's VAE (or Wan 2.2's for TI2V) connected"),
    ("SaltRolloutToVideo", "positive vae", {}, True),
    ("SaltRolloutToVideo", "positive vae", {"filename_prefix": "../x"}, "expected a name below the output folder"),
    ("SaltRolloutToVideo", "positive vae video memory", {}, "video and memory cannot both be connected"),
    ("SaltLive", "model clip vae", {}, True),
    ("SaltLive", "video memory", {}, True),
    ("SaltLive", "start_image latents", {}, "start_image and latents cannot both be connected"),
    ("SaltLive", "start_image memory", {}, "start_image and memory cannot both be connected"),
]  # fmt: skip


def test_sockets_that_are_needed_or_exclude_each_other_are_found_before_anything_runs():
    rows = [row[:3] for row in CONNECTIONS]
    given = SOCKETS.replace("%r", repr(rows).replace("nan", "float('nan')"))
    for (*row, expected), found in zip(CONNECTIONS, in_pack(given), strict=True):
        assert found is True if expected is True else expected in str(found), (row, found)


ROUTES = """
import asyncio
import sys
import types
from aiohttp import web

app, routes = web.Application(), web.RouteTableDef()
args = types.SimpleNamespace(listen="127.0.0.1")
sys.modules["comfy.cli_args"] = types.SimpleNamespace(args=args)
sys.modules["server"] = types.SimpleNamespace(
    PromptServer=types.SimpleNamespace(
        instance=types.SimpleNamespace(app=app, routes=routes, add_on_prompt_handler=[].append)
    )
)
asyncio.run(pack.nodes.comfy_entrypoint())
result = [route.path for route in routes] + [r.canonical for r in app.router.resources() if "live" in r.canonical]
"""


def test_the_entry_point_adds_the_routes_as_older_versions_call_nothing_else():
    found = in_pack("import pack.nodes\n" + ROUTES)
    assert {"/salt/running", "/salt/stop", "/salt/live/ws", "/salt/live/static/{name}"} <= set(found)


FEW = """
import asyncio
import pack.nodes as extension
from pack.nodes.adapter.core_versions import ADVANCED

def is_few(slot):
    folded = slot.settings.get("extra_dict", {}).get("advanced") or slot.settings.get("advanced")
    return slot.type in ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN") and not folded

nodes = asyncio.run(extension.SaltExtension().get_node_list())
kinds = ("SaltRollout", "SaltLive", "SaltRolloutToVideo", "SaltExtendVideo")
result = [ADVANCED] + [[slot.id for slot in node.define_schema().inputs if is_few(slot)]
                       for node in nodes if node.__name__ in kinds]
"""


def test_few_widgets_are_not_folded_away():
    advanced, *shown = in_pack(FEW)
    assert advanced == {"extra_dict": {"advanced": True}}, "as to a ComfyUI that does not know the argument"
    # The front end adds control_after_generate to seed, which the canvas draws as one more.
    assert len(shown) == 4 and all(len(names) <= 5 and "nfe" in names for names in shown), shown


def test_a_rollout_may_end_while_the_page_asks_what_runs():
    program = """
from pack.nodes.adapter import running

class Ending:
    stopped = False
    @property
    def session(self):
        running._running.pop("2", None)
        return ""

running._running.update({"1": Ending(), "2": Ending()})
result = list(running.running_nodes())
"""
    assert in_pack(program) == ["1", "2"]
