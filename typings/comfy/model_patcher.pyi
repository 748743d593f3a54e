from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import torch
from torch import Tensor

from .model_base import BaseModel

class Backup(NamedTuple):
    weight: Tensor
    inplace_update: bool

class ModelPatcher:
    model: BaseModel
    model_options: dict[str, Any]
    patches: dict[Any, list[Any]]
    patches_uuid: UUID
    object_patches: dict[str, Any]
    object_patches_backup: dict[str, Any]
    backup: dict[str, Backup]
    load_device: torch.device
    cached_patcher_init: (
        tuple[Callable[..., object], tuple[object, ...]] | tuple[Callable[..., object], tuple[object, ...], int] | None
    )
    def clone(self) -> ModelPatcher: ...
    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Callable[..., object]) -> None: ...
    def get_all_wrappers(self, wrapper_type: str) -> list[object]: ...
    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None: ...

def create_model_options_clone(orig_model_options: dict[str, Any]) -> dict[str, Any]: ...
