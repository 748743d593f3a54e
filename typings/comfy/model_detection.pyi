from typing import Any

from torch import Tensor

def detect_unet_config(
    state_dict: dict[str, Tensor], key_prefix: str, metadata: dict[str, str] | None = ...
) -> dict[str, Any] | None: ...
