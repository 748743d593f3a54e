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


PROMPTS = """
import asyncio
import inspect
import pack.nodes as extension

def answer(node, connected):
    # As core asks: with what is connected or set and the function names; it reports under those.
    there = {"model": None, "filename_prefix": None, "seconds": 5.0, **dict.fromkeys(connected)}
    has = {slot.id for slot in node.define_schema().inputs}
    named = inspect.getfullargspec(node.validate_inputs).args
    given = {name: value for name, value in there.items() if name in named and name in has}
    return [bool(given), node.validate_inputs(**given)]

result = {}
for node in asyncio.run(extension.SaltExtension().get_node_list()):
    if {"positive", "prompts"} <= {slot.id for slot in node.define_schema().inputs}:
        result[node.__name__] = [answer(node, sockets) for sockets in ((), ("positive",), ("prompts",))]
"""


def test_a_missing_prompt_is_found_before_anything_runs():
    found = in_pack(PROMPTS)
    assert set(found) == {"SaltRollout", "SaltExtendVideo", "SaltRolloutToVideo"}
    said = "connect CLIP Text Encode to positive, or Salt Prompt Schedule to prompts"
    assert all(answers == [[True, said], [True, True], [True, True]] for answers in found.values()), found


ROUTES = """
import asyncio
import sys
import types
from aiohttp import web

app, routes = web.Application(), web.RouteTableDef()
args = types.SimpleNamespace(listen="127.0.0.1")
sys.modules["comfy.cli_args"] = types.SimpleNamespace(args=args)
sys.modules["server"] = types.SimpleNamespace(
    PromptServer=types.SimpleNamespace(instance=types.SimpleNamespace(app=app, routes=routes))
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
