from collections.abc import Callable

from torch import nn

WanVAE: Callable[..., nn.Module]
