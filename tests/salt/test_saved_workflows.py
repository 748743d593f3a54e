"""Workflows as ComfyUI's page saves them, turned into the prompt that the page would queue."""

import json
from pathlib import Path

import pytest

from salt.comfy_client.workflow import to_prompt
from workflows.maker.node_definitions import load_definitions

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "tests" / "data" / "workflows"
IMAGES = ["IMAGE"]
INFO = {
    "Load": {"input": {"required": {"name": [["a", "b"]]}}},
    "Edit": {
        "input": {"required": {"image": IMAGES, "by": ["FLOAT", {"default": 0.5}]}, "optional": {"mask": ["MASK"]}}
    },
    "Mix": {"input": {"required": {"a": IMAGES, "b": IMAGES}}},
    "Save": {"input": {"required": {"image": IMAGES, "prefix": ["STRING", {}]}}},
}


def saved(name):
    return json.loads((SAVED / f"{name}.json").read_text())


def twin(name):
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def untitled(prompt):
    return {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()}


def node(number, kind, values=(), inputs=(), outputs=("IMAGE",), **more):
    """inputs: (name, type, link)."""
    return {
        "id": number,
        "type": kind,
        "inputs": [{"name": n, "type": t, "link": link} for n, t, link in inputs],
        "outputs": [{"name": t, "type": t} for t in outputs],
        "widgets_values": list(values),
        **more,
    }


def image(link, name="image"):
    return (name, "IMAGE", link)


def chain(*middle):
    """Load -> the nodes in between (numbers from 2 on) -> Save, linked by 1, 2, ..."""
    count = len(middle)
    nodes = [node(1, "Load", ["a"]), *middle, node(9, "Save", ["x"], [image(count + 1)])]
    links = [[i + 1, a["id"], 0, b["id"], 0, "IMAGE"] for i, (a, b) in enumerate(zip(nodes, nodes[1:], strict=False))]
    return {"nodes": nodes, "links": links}


def save_gets(workflow, info=INFO):
    """What is linked to the Save node's input."""
    (found,) = (n["inputs"] for n in to_prompt(workflow, info).values() if n["class_type"] == "Save")
    return found.get("image")


def test_a_subgraph_becomes_its_nodes():
    found, expected = untitled(to_prompt(saved("sub"), load_definitions())), untitled(twin("tiny_text_to_video"))
    renamed = {number: {"2": "7:2", "3": "7:3", "4": "7:4"}.get(number, number) for number in expected}

    def moved(value):
        return [renamed[value[0]], value[1]] if isinstance(value, list) else value

    wanted = {
        renamed[n]: (kind, {name: moved(value) for name, value in inputs.items()})
        for n, (kind, inputs) in expected.items()
    }
    wanted["7:3"][1]["seconds"] = 1.5
    assert found == wanted


def test_a_bypassed_output_node_is_left_out():
    found, expected = untitled(to_prompt(saved("bypassed"), load_definitions())), untitled(twin("save_memory"))
    del expected["6"]
    assert found == expected


def test_widgets_newer_than_the_file_have_the_servers_defaults():
    found, expected = untitled(to_prompt(saved("older"), load_definitions())), untitled(twin("tiny_text_to_video"))
    expected["3"][1]["seconds"] = 1.0
    assert found == expected and found["3"][1]["stepping"] == "sde"


def test_defaults_of_every_kind_of_widget():
    widgets = {
        "list": [["x", "y"]], "listed": ["COMBO", {"options": ["p", "q"]}], "chosen": [["x", "y"], {"default": "y"}],
        "none": [[]], "int": ["INT", {}],
        "float": ["FLOAT"], "flag": ["BOOLEAN", {"default": True}], "text": ["STRING"],
    }  # fmt: skip
    found = to_prompt({"nodes": [node(1, "N")]}, {"N": {"input": {"required": widgets}}})["1"]["inputs"]
    assert found == {"list": "x", "listed": "p", "chosen": "y", "int": 0, "float": 0.0, "flag": True, "text": ""}


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        (node(2, "Edit", [1.0], [image(1)], mode=4), ["1", 0]),
        (node(2, "Edit", [1.0], [("mask", "MASK", None), image(1)], mode=4), ["1", 0]),
        (node(2, "Mask", [], [("mask", "MASK", 1)], mode=4), None),
        (node(2, "Edit", [1.0], [image(1)], mode=2), None),
        (node(2, "Reroute", [], [("", "*", 1)], outputs=("*",)), ["1", 0]),
        (node(2, "Any", [], [("any", "*", 1)], outputs=("*",), mode=4), ["1", 0]),
        (node(2, "Either", [], [("any", "LATENT,IMAGE", 1)], mode=4), ["1", 0]),
    ],
)
def test_bypassed_muted_and_rerouted_links(middle, expected):
    assert save_gets(chain(middle)) == expected


def test_a_bypassed_node_hands_on_the_opposite_input_first():
    mix = node(2, "Mix", [], [image(None, "a"), image(1, "b")], outputs=("IMAGE", "IMAGE"), mode=4)
    workflow = chain(mix)
    assert save_gets(workflow) is None, "the page takes input 0 for output 0"
    workflow["links"][1][2] = 1
    assert save_gets(workflow) == ["1", 0]


def test_a_long_row_of_bypassed_nodes():
    assert save_gets(chain(*(node(10 + i, "Edit", [1.0], [image(i + 1)], mode=4) for i in range(3000)))) == ["1", 0]


def test_a_primitive_node_sets_a_widget():
    primitive = node(2, "PrimitiveNode", [7.5, "fixed"], outputs=("FLOAT",))
    edit = node(3, "Edit", [1.0], [image(2), ("by", "FLOAT", 1)])
    workflow = {"nodes": [primitive, edit, node(1, "Load", ["a"])], "links": [[1, 2, 0, 3, 1], [2, 1, 0, 3, 0]]}
    assert to_prompt(workflow, INFO)["3"]["inputs"] == {"by": 7.5, "image": ["1", 0]}


def test_a_list_is_a_value_and_no_link():
    found = to_prompt({"nodes": [node(1, "Save", [["x", 0]])]}, INFO)
    assert found["1"]["inputs"] == {"prefix": {"__value__": ["x", 0]}}


def subgraph(name, nodes, links, inputs=(("image", "IMAGE"),)):
    made = [dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot"), x, strict=True)) for x in links]
    return {"id": name, "nodes": nodes, "links": made, "inputs": [{"name": n, "type": t} for n, t in inputs]}


EDITS = subgraph("s", [node(1, "Edit", [1.0], [image(1)])], [(1, -10, 0, 1, 0), (2, 1, 0, -20, 0)])
PASSES = subgraph("p", [], [(1, -10, 0, -20, 0)])
NESTED = subgraph("n", [node(5, "s", [], [image(1)])], [(1, -10, 0, 5, 0), (2, 5, 0, -20, 0)])
SILENT = subgraph("e", [node(1, "Edit", [1.0], [image(1)], mode=2)], [(1, -10, 0, 1, 0), (2, 1, 0, -20, 0)])


@pytest.mark.parametrize(
    ("kind", "mode", "linked", "inside"),
    [
        ("s", 0, ["2:1", 0], {"2:1": ["1", 0]}),
        ("n", 0, ["2:5:1", 0], {"2:5:1": ["1", 0]}),
        ("p", 0, ["1", 0], {}),
        ("e", 0, None, {}),
        ("s", 4, ["1", 0], {}),
        ("s", 2, None, {}),
    ],
)
def test_subgraphs_nested_passed_through_bypassed_and_muted(kind, mode, linked, inside):
    workflow = chain(node(2, kind, [], [image(1)], mode=mode))
    workflow["definitions"] = {"subgraphs": [EDITS, PASSES, NESTED, SILENT]}
    prompt = to_prompt(workflow, INFO)
    assert save_gets(workflow) == linked
    assert {n: node["inputs"]["image"] for n, node in prompt.items() if node["class_type"] == "Edit"} == inside


def test_two_nodes_of_one_subgraph_and_an_input_that_nothing_feeds():
    workflow = chain(node(2, "s", [], [image(1)]), node(3, "s", [], [image(None)]))
    workflow["definitions"] = {"subgraphs": [EDITS]}
    prompt = to_prompt(workflow, INFO)
    assert set(prompt) == {"1", "2:1", "3:1", "9"} and prompt["3:1"]["inputs"] == {"by": 1.0}
    workflow["nodes"][1]["widgets_values"] = [3.0]
    with pytest.raises(ValueError, match="node 2: found values of its own in one of 2 nodes of the same subgraph"):
        to_prompt(workflow, INFO)


def doubled(levels):
    """Every subgraph holds the next one twice."""
    last = subgraph(str(levels), [node(1, "Load", ["a"])], [])
    held = [subgraph(str(i), [node(1, str(i + 1)), node(2, str(i + 1))], []) for i in range(levels)]
    return [*held, last]


@pytest.mark.parametrize(
    ("kind", "subgraphs", "expected"),
    [
        ("a", [subgraph("a", [node(1, "b")], []), subgraph("b", [node(1, "a")], [])], "2:1:1: its subgraph contains"),
        ("0", doubled(40), "more than 20,000 nodes"),
        ("0", [subgraph(str(i), [node(1, str(i + 1))], []) for i in range(60)], "lies more than 50 levels deep"),
        ("a", [{"id": "a", "nodes": "none"}], r"definitions.subgraphs\[0\].nodes: found 'none', expected a list"),
        ("a", [{"id": 7, "nodes": []}], r"definitions.subgraphs\[0\].id: found 7, expected text"),
        ("a", [subgraph("a", [node(1, "Edit", [], [image(9)])], [])], "found no link for image"),
        ("a", [subgraph("a", [], [(1, 77, 0, -20, 0)])], "found no node 77"),
        ("a", [subgraph("a", [node(1, "Reroute", [], [image(1)])], [(1, 1, 0, 1, 0), (2, 1, 0, -20, 0)])], "a circle"),
        ("workflow/mine", [], "node 2 .workflow/mine.: group nodes are not supported"),
        ("2f1c", [], "nodes that this server does not have: 2f1c"),
    ],
)
def test_subgraphs_that_cannot_be_expanded(kind, subgraphs, expected):
    workflow = chain(node(2, kind, [], [image(1)]))
    workflow["definitions"] = {"subgraphs": subgraphs}
    with pytest.raises(ValueError, match=expected) as error:
        to_prompt(workflow, INFO)
    assert len(str(error.value)) < 300


def dynamic(*options, **settings):
    """A choice of which every option has inputs of its own, as in ComfyUI 0.33's Save Video."""
    return [
        "COMFY_DYNAMICCOMBO_V3",
        {"options": [{"key": k, "inputs": {"required": i}} for k, i in options]} | settings,
    ]


CRF = {"crf": ["FLOAT", {"default": 23.0}]}
CODEC = dynamic(("auto", {}), ("h264", {"encoding": dynamic(("auto", {}), ("re-encode", CRF))}))
FORMAT = dynamic(("mp4", {"codec": CODEC}), ("gif", {}))
VIDEO = {
    "Save": {
        "input": {
            "required": {"prefix": ["STRING", {}], "format": FORMAT},
            "optional": {"last": ["INT", {"default": 7}]},
        }
    }
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["x"], {"format": "mp4", "format.codec": "auto", "last": 7}),
        (["x", "mp4", "auto"], {"format": "mp4", "format.codec": "auto", "last": 7}),
        (["x", "gif", 3], {"format": "gif", "last": 3}),
        (["x", "mp4", "h264", "auto", 3],
         {"format": "mp4", "format.codec": "h264", "format.codec.encoding": "auto", "last": 3}),
        (["x", "mp4", "h264", "re-encode", 30.0, 3],
         {"format": "mp4", "format.codec": "h264", "format.codec.encoding": "re-encode",
          "format.codec.encoding.crf": 30.0, "last": 3}),
        ({"prefix": "x", "format": "mp4", "format.codec": "h264"},
         {"format": "mp4", "format.codec": "h264", "format.codec.encoding": "auto", "last": 7}),
    ],
)  # fmt: skip
def test_the_inputs_of_a_chosen_option_follow_their_choice(values, expected):
    workflow = {"nodes": [{"id": 1, "type": "Save", "widgets_values": values}], "links": []}
    assert to_prompt(workflow, VIDEO)["1"]["inputs"] == {"prefix": "x", **expected}


def test_values_behind_those_of_the_chosen_option_are_refused():
    workflow = {"nodes": [{"id": 1, "type": "Save", "widgets_values": ["x", "gif", 3, "auto"]}], "links": []}
    with pytest.raises(ValueError, match=r"node 1 \(Save\): found 4 widget values, expected at most 3"):
        to_prompt(workflow, VIDEO)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"options": 3}, r"input.required.format.options: found 3, expected a list"),
        ({"options": [{"key": "mp4"}]}, r"input.required.format.options\[0\]"),
        ({"options": [{"key": "mp4", "inputs": {"required": {"codec": 1}}}]}, r"input.required.format.mp4.required"),
    ],
)
def test_a_choice_that_cannot_be_read_is_named(choice, message):
    workflow = {"nodes": [{"id": 1, "type": "Save", "widgets_values": ["mp4"]}], "links": []}
    info = {"Save": {"input": {"required": {"format": ["COMFY_DYNAMICCOMBO_V3", choice]}}}}
    with pytest.raises(ValueError, match=f"the server's definition of Save: {message}"):
        to_prompt(workflow, info)
