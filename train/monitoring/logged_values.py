"""Values that one micro-batch of an update logs."""

from __future__ import annotations

from torch import Tensor

# By name. Losses are tensors until the update's work has been launched: reading one makes the host wait for the device.
LoggedValues = dict[str, float | Tensor]
