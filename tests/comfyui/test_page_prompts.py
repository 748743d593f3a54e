"""The prompt that ComfyUI's page queues for a workflow, beside the one that `salt run-workflow` makes of its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from salt.comfy_client.workflow import to_prompt
from tests.helpers.comfyui_server import NEWER_PAGE, template

ROOT = Path(__file__).parents[2]
ROLLOUT = "SaltRollout"


def with_other_modes(graph: dict[str, Any], whole_subgraphs: bool) -> Iterator[dict[str, Any]]:
    """The workflow as it is, and with each of its nodes bypassed or muted, those in subgraphs too.

    whole_subgraphs: nodes that are subgraphs, too.
    """
    yield graph
    subgraphs = {subgraph["id"] for subgraph in graph.get("definitions", {}).get("subgraphs", [])}
    inner = [subgraph["nodes"] for subgraph in graph.get("definitions", {}).get("subgraphs", [])]
    for node in [node for nodes in (graph["nodes"], *inner) for node in nodes]:
        before = node.get("mode", 0)
        for mode in (2, 4):
            if node["type"] in subgraphs and not whole_subgraphs:
                continue
            node["mode"] = mode
            yield graph
        node["mode"] = before


@pytest.mark.parametrize("name", ["sub", "bypassed", "older", "branch_memory"])
def test_run_workflow_makes_the_prompt_that_the_page_makes(comfy, page_server, name):
    file = template(name) if name == "branch_memory" else ROOT / "tests" / "data" / "workflows" / f"{name}.json"
    graph, info = json.loads(file.read_text()), page_server.node_info()
    whole_subgraphs = page_server.version >= NEWER_PAGE
    checked = 0
    for variant in with_other_modes(graph, whole_subgraphs):
        page = comfy.page.evaluate(
            "async graph => { await app.loadGraphData(graph); return (await app.graphToPrompt()).output }", variant
        )
        ours = to_prompt(variant, info)
        modes = {node["id"]: node.get("mode", 0) for node in variant["nodes"] if node.get("mode")}
        assert {n: [p["class_type"], p["inputs"]] for n, p in ours.items()} == {
            n: [p["class_type"], p["inputs"]] for n, p in page.items()
        }, modes
        checked += 1
    inner = graph.get("definitions", {}).get("subgraphs", [])
    left_out = 0 if whole_subgraphs else 2 * sum(node["type"] in [g["id"] for g in inner] for node in graph["nodes"])
    assert checked == 1 + 2 * sum(len(g["nodes"]) for g in (graph, *inner)) - left_out


MAKE_NESTED = """async graph => { await app.loadGraphData(graph);
  const of = type => app.graph._nodes.find(n => n.type === type), add = type => {
    const made = LiteGraph.createNode(type); app.graph.add(made); return made };
  const rollout = of('SaltRollout'), reroute = add('Reroute'), primitive = add('PrimitiveNode');
  of('SaltLoadTiny').connect(0, reroute, 0);
  reroute.connect(0, rollout, 0);
  primitive.connect(0, rollout, rollout.inputs.findIndex(i => i.name === 'seconds'));
  for (const types of [['SaltRollout', 'Reroute', 'PrimitiveNode'], ['SaltDecode'], ['CLIPTextEncode']]) {
    const subgraphs = app.graph._nodes.filter(n => n.isSubgraphNode());
    app.canvas.selectItems([...app.graph._nodes.filter(n => types.includes(n.type)), ...subgraphs]);
    await app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph');
  }
  const all = [...app.rootGraph.subgraphs.values()].flatMap(g => g.nodes);
  all.find(n => n.type === 'PrimitiveNode').widgets[0].value = 2.5;
  return JSON.parse(JSON.stringify(app.graph.serialize())) }"""


def test_run_workflow_takes_nested_subgraphs_reroutes_and_primitives_as_the_page_does(comfy, page_server):
    flat = json.loads(template("tiny_text_to_video").read_text())
    graph, info = comfy.page.evaluate(MAKE_NESTED, flat), page_server.node_info()
    assert len(graph["definitions"]["subgraphs"]) == 3
    ours = to_prompt(graph, info)
    (rollout,) = [p["inputs"] for number, p in ours.items() if p["class_type"] == ROLLOUT and number.count(":") == 3]
    assert rollout["seconds"] == 2.5 and rollout["model"] == ["1", 0]
    page = comfy.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert {n: p["inputs"] for n, p in ours.items()} == {n: p["inputs"] for n, p in page.items()}


def test_the_prefix_of_save_memory_is_expanded_when_a_prompt_is_queued(comfy):
    comfy.drop(template("save_memory"))
    comfy.set_widget("SaltSaveMemory", "filename_prefix", "salt_memories/%date:yyyy%_%Salt Rollout.seed%_%width%")
    queued = comfy.page.evaluate(
        """async () => { const { output, workflow } = await app.graphToPrompt();
        const kept = workflow.nodes.find(n => n.type === 'SaltSaveMemory').widgets_values[0];
        return [Object.values(output).find(n => n.class_type === 'SaltSaveMemory').inputs.filename_prefix, kept] }"""
    )
    year, seed = comfy.page.evaluate("new Date().getFullYear()"), comfy.widget(ROLLOUT, "seed")
    assert queued[0] == f"salt_memories/{year}_{seed}_%width%", "core's server expands the rest"
    assert queued[1] == "salt_memories/%date:yyyy%_%Salt Rollout.seed%_%width%", "the workflow keeps the pattern"
