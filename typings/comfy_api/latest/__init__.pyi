from fractions import Fraction
from io import BytesIO

from torch import Tensor

from . import io as io
from . import ui as ui

class ComfyExtension:
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...

class InputImpl:
    class VideoFromFile:
        def __init__(self, file: str) -> None: ...
        def get_stream_source(self) -> str | BytesIO: ...
        def get_components(self) -> Types.VideoComponents: ...

    class VideoFromComponents:
        def __init__(self, components: Types.VideoComponents) -> None: ...
        def get_components(self) -> Types.VideoComponents: ...

class Types:
    class VideoComponents:
        images: Tensor
        frame_rate: Fraction
        def __init__(self, *, images: Tensor, audio: object, frame_rate: Fraction) -> None: ...
