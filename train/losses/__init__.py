"""The losses of Salt, each a small pure function; the trainer composes them and owns every random choice."""

from .adversarial import fooling_loss, judge_loss, smoothness_loss
from .alignment import linear_mmd, rbf_mmd, token_relation_distance
from .dmd import critic_flow_loss, dmd_gradient, dmd_loss, guided_x0
from .semigroup import (
    TimestepTriple,
    composed_endpoint,
    direct_endpoint,
    grid_triples,
    semigroup_defect,
    semigroup_loss,
    time_weight,
)

__all__ = [
    "TimestepTriple",
    "composed_endpoint",
    "critic_flow_loss",
    "direct_endpoint",
    "dmd_gradient",
    "dmd_loss",
    "fooling_loss",
    "grid_triples",
    "guided_x0",
    "judge_loss",
    "linear_mmd",
    "rbf_mmd",
    "semigroup_defect",
    "semigroup_loss",
    "smoothness_loss",
    "time_weight",
    "token_relation_distance",
]
