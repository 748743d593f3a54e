from typing import Any

from torch import Tensor

def convert_cond(cond: list[tuple[Tensor, dict[str, Any]]]) -> list[dict[str, Any]]: ...
