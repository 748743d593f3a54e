from collections.abc import Callable
from typing import Any

class WrappersMP:
    PREPARE_SAMPLING: str
    CALC_COND_BATCH: str

def add_wrapper_with_key(
    wrapper_type: str,
    key: str,
    wrapper: Callable[..., object],
    transformer_options: dict[str, Any],
    is_model_options: bool = ...,
) -> None: ...
