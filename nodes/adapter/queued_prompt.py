"""The graph that is being validated, and which memories its nodes will have.

ComfyUI validates a node by its own widgets and by which sockets are connected. What comes through a socket stands in
the graph, which its server passes to the pack before it validates: a policy's widgets, a student's file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ...salt.errors import InputError

if TYPE_CHECKING:
    from ...salt.memory import MemoryPolicy

# By id: class_type and inputs, of which [id, number] are links. Of the request whose task reads it.
_graph: ContextVar[Mapping[str, Any] | None] = ContextVar("salt_queued_graph", default=None)
DEEPEST = 50  # nodes that a memory or a MODEL goes through
# By kind of node: the sockets that it looks at before a run, by which it is found among others of its kind.
SOCKETS = {
    "SaltRollout": ("positive", "prompts", "negative", "vae", "memory", "start_image", "latents", "video"),
    "SaltExtendVideo": ("positive", "prompts", "negative", "vae"),
    "SaltSampler": ("policy",),
    "SaltSemigroupDefect": ("model", "positive", "policy"),
}


def keep_graph(request: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI's server calls with every prompt before it is validated; the request stays as it is."""
    graph = request.get("prompt")
    _graph.set(graph if isinstance(graph, dict) else None)
    return request


def check_queued_memory(connected: Collection[str], kind: str) -> None:
    """Raise InputError where a node of this kind will need a VAE for its memory and has none.

    connected: those of the kind's SOCKETS.
    """
    from .head_encoder import needs_vae

    names = SOCKETS[kind]
    if "vae" in connected:
        return
    for node in (_graph.get() or {}).values():
        inputs = _inputs(node, kind)
        if inputs is None or {name for name in names if _link(inputs, name)} != set(connected):
            continue
        policy = _policy(inputs)
        if policy is None or not policy.reencodes:
            continue
        raise needs_vae(policy) if "vae" in names else no_vae_here(policy)


def no_vae_here(policy: MemoryPolicy) -> InputError:
    """The error of a node that has no socket for a VAE."""
    problem = f"{policy} decodes frames and encodes them again, and this node has no VAE"
    return InputError("policy", f"{problem}; choose rebuilt, first frame kept ({policy},keep), or use Salt Rollout")


def _policy(inputs: Mapping[str, Any], deep: int = 0) -> MemoryPolicy | None:
    """Of a rollout with these inputs; None where the graph does not tell."""
    if deep > DEEPEST:
        return None
    if source := _source(inputs, "memory"):
        return _policy(source["inputs"], deep + 1)
    if source := _source(inputs, "policy"):
        return _widgets_policy(_inputs(source, "SaltMemoryPolicy"))
    if source := _source(inputs, "model"):
        student = (_inputs(source, "SaltLoadStudent") or {}).get("student")
        return _student_policy(student) if isinstance(student, str) else _policy(_models(source), deep + 1)
    return None


def _models(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs of a node that passes a MODEL on, without those that would be of a rollout."""
    return {name: value for name, value in node["inputs"].items() if name == "model"}


def _widgets_policy(widgets: Mapping[str, Any] | None) -> MemoryPolicy | None:
    from .memory_policy import policy_of

    names = ("kind", "window", "sink", "blend", "precision", "residence")
    if widgets is None or any(name not in widgets or _link(widgets, name) for name in names):
        return None
    try:
        return policy_of(**{name: widgets[name] for name in names})
    except (InputError, KeyError, TypeError):  # the policy's own node says so
        return None


def _student_policy(name: str) -> MemoryPolicy | None:
    from ...salt.checkpoints.reader import read_spec
    from ...salt.checkpoints.tensor_files import CheckpointError
    from .loading import student_path

    try:
        path = student_path(name)
        spec = None if path.is_dir() else read_spec(path)
    except (OSError, CheckpointError):  # the loader says so
        return None
    return None if spec is None else spec.policy


def _source(inputs: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The node that an input is linked to."""
    node = (_graph.get() or {}).get(str(inputs[name][0])) if _link(inputs, name) else None
    return node if isinstance(node, dict) and isinstance(node.get("inputs"), dict) else None


def _inputs(node: object, kind: str) -> Mapping[str, Any] | None:
    """A node's inputs, if it is of this kind."""
    if not isinstance(node, dict) or node.get("class_type") != kind:
        return None
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else None


def _link(inputs: Mapping[str, Any], name: str) -> bool:
    return isinstance(inputs.get(name), list) and len(inputs[name]) == 2
