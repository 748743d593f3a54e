"""The losses of Salt as small pure functions; `train.methods` composes them, `train.rollout.random_draws` draws."""

from .adversarial import discriminator_loss, generator_adversarial_loss, gradient_penalty
from .alignment import linear_mmd, rbf_mmd, token_relation_distance
from .consistency import consistency_loss
from .dmd import dmd_gradient, dmd_loss, guided_x0
from .flow_matching import bell_weight, flow_matching_error, flow_matching_loss
from .semigroup import (
    TimestepTriple,
    composed_endpoint,
    direct_endpoint,
    grid_triples,
    semigroup_loss,
    time_weight,
)

__all__ = [
    "TimestepTriple",
    "bell_weight",
    "composed_endpoint",
    "consistency_loss",
    "direct_endpoint",
    "discriminator_loss",
    "dmd_gradient",
    "dmd_loss",
    "flow_matching_error",
    "flow_matching_loss",
    "generator_adversarial_loss",
    "gradient_penalty",
    "grid_triples",
    "guided_x0",
    "linear_mmd",
    "rbf_mmd",
    "semigroup_loss",
    "time_weight",
    "token_relation_distance",
]
