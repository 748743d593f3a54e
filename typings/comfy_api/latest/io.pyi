from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

class Input:
    def __init__(
        self, id: str, display_name: str | None = ..., optional: bool = ..., tooltip: str | None = ..., *,
        advanced: bool = ...,
    ) -> None: ...  # fmt: skip

class Output:
    def __init__(
        self, id: str | None = ..., display_name: str | None = ..., tooltip: str | None = ...
    ) -> None: ...  # fmt: skip

class ComfyType:
    Input: type[Input]
    Output: type[Output]

Model: ComfyType
Clip: ComfyType
Vae: ComfyType
Latent: ComfyType
Conditioning: ComfyType
Image: ComfyType
Video: ComfyType
Sampler: ComfyType
Sigmas: ComfyType

class Int:
    class Input(Input):
        def __init__(
            self, id: str, *, default: int = ..., min: int = ..., max: int = ..., step: int = ...,
            control_after_generate: bool = ..., tooltip: str = ..., advanced: bool = ...,
        ) -> None: ...  # fmt: skip

class MultiType:
    class Input(Input):
        def __init__(self, id: str, types: list[ComfyType], *, optional: bool = ..., tooltip: str = ...) -> None: ...

class Float:
    class Input(Input):
        def __init__(
            self, id: str, *, default: float = ..., min: float = ..., max: float = ..., step: float = ...,
            round: float = ...,
            optional: bool = ..., tooltip: str = ..., advanced: bool = ...,
        ) -> None: ...  # fmt: skip

    class Output(Output): ...

class Boolean:
    class Input(Input):
        def __init__(self, id: str, *, default: bool = ..., tooltip: str = ..., advanced: bool = ...) -> None: ...

    class Output(Output): ...

class String:
    class Input(Input):
        def __init__(
            self, id: str, *, default: str = ..., multiline: bool = ..., tooltip: str = ..., advanced: bool = ...
        ) -> None: ...  # fmt: skip

    class Output(Output): ...

class Combo:
    class Input(Input):
        def __init__(
            self, id: str, *, options: Sequence[str], default: str = ..., tooltip: str = ..., advanced: bool = ...,
            extra_dict: object = ...,
        ) -> None: ...  # fmt: skip

def Custom(io_type: str) -> ComfyType: ...

@dataclass
class Schema:
    node_id: str
    display_name: str = ...
    category: str = ...
    inputs: list[Input] = ...
    outputs: list[Output] = ...
    description: str = ...
    search_aliases: list[str] = ...
    is_output_node: bool = ...

class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema: ...

class NodeOutput:
    args: tuple[Any, ...]
    ui: dict[str, Any] | None
    def __init__(self, *args: object, ui: dict[str, Any] | None = ...) -> None: ...
