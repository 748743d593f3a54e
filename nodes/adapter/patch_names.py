"""Names of patches as a user knows them: the node that made a function or object found on a MODEL."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType


def code_of(value: object) -> CodeType | None:
    """The code of a function, a method, or an object that is called like one; None for what has none."""
    function = value if isinstance(value, (FunctionType, MethodType)) else getattr(type(value), "__call__")  # noqa: B004, B009
    return getattr(getattr(function, "__func__", function), "__code__", None)


def all_code(code: CodeType | None) -> Iterator[CodeType]:
    """Code and that of the functions inside it."""
    if code is not None:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from all_code(constant)


def words_of_code(code: CodeType | None) -> set[str]:
    """Names and texts in code and in the functions inside it: what it calls, and the keys that it looks up."""
    found: set[str] = set()
    for part in all_code(code):
        found.update(part.co_names)
        for constant in part.co_consts:
            texts = constant if isinstance(constant, tuple) else (constant,)
            found.update(text for text in texts if isinstance(text, str))
    return found


def words_of(value: object) -> set[str]:
    """`words_of_code` of a function, method or callable object."""
    return words_of_code(code_of(value))


def registered_nodes() -> dict[str, type]:
    """ComfyUI's node classes by their ids; none before it has started."""
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})


def node_code(node: type) -> CodeType | None:
    """The code of what a node runs, in either of ComfyUI's styles."""
    return code_of(getattr(node, "execute", None) or getattr(node, getattr(node, "FUNCTION", ""), None))


def uses(node: type, module: str, name: str) -> bool:
    """Whether a node's own code names a function or class of a module."""
    words = words_of_code(node_code(node))
    return name in words and (node.__module__ == module or module.rpartition(".")[2] in words)


def node_ids(value: object) -> list[str]:
    """The ids of the nodes that can have made a function or object: one, or a node and those derived from it."""
    made = value if isinstance(value, (FunctionType, MethodType, type)) else type(value)
    outer, module = made.__qualname__.split(".")[0], made.__module__
    nodes = registered_nodes()
    maker = next((n for n in nodes.values() if n.__qualname__ == outer and n.__module__ == module), None)
    maker = maker or next((n for n in nodes.values() if uses(n, module, outer)), None)
    return [] if maker is None else [name for name, node in nodes.items() if issubclass(node, maker)]


def patch_name(value: object) -> str:
    """The node, as the graph shows it, that made a function or object; else what its own code calls it."""
    if ids := node_ids(value):
        return " or ".join(shown(name) for name in ids)
    made = value if isinstance(value, (FunctionType, MethodType, type)) else type(value)
    outer = made.__qualname__.split(".")[0]
    return f"a function of {made.__module__}" if outer == "<lambda>" else outer


def shown(node_id: str) -> str:
    """A node's id, and its title where it is called otherwise."""
    titles = getattr(sys.modules.get("nodes"), "NODE_DISPLAY_NAME_MAPPINGS", {})
    title = titles.get(node_id, node_id)
    return node_id if title.replace(" ", "") == node_id.replace(" ", "") else f"{node_id} ({title})"
