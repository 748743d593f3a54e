"""Wan's text encoder alone, whole on the device and layer by layer: costs of a prompt, crossings, peak, waits."""

import pytest
import torch
from torch import nn

from benchmarks.ledger.text import text_costs
from salt.models.text_encoder import one_at_a_time
from tests.helpers.ledger_budgets import check_budget

# Launches, GB moved on the device, GB to the device, peak in GB.
BUDGETS = {"whole": (1469, 28.2, 0.0, 11.49), "layer by layer": (1468, 28.2, 9.27, 0.512)}


@pytest.mark.parametrize("placement", BUDGETS)
def test_one_prompt(device, placement):
    found = text_costs(placement)
    launches, moved, to_device, peak = BUDGETS[placement]
    assert found.costs.to_host == 0, "weights are not copied back, and embeddings stay on the device"
    assert found.costs.to_device / 1e9 == pytest.approx(to_device, abs=0.01)
    assert found.peak / 1e9 == pytest.approx(peak, rel=0.01)
    # the tokens, the mask and the check for NaN; layer by layer, one for every weight, as main memory is not pinned
    assert sum(found.waits.values()) <= (3 if placement == "whole" else 34)
    check_budget(found.costs.launches, found.costs.bytes, (launches, moved))


def test_a_layer_has_its_own_weights_again_after_its_turn():
    layer = nn.Linear(4, 4)
    weight, data = layer.weight, layer.weight.data.clone()
    place = weight.data_ptr()
    with one_at_a_time([layer], torch.device("meta"), torch.device("cpu")):
        assert layer(torch.zeros(1, 4, device="meta")).is_meta
        assert layer.weight is weight and layer.weight.data_ptr() == place
        with pytest.raises(RuntimeError):
            layer(torch.zeros(1, 5, device="meta"))
    assert layer.weight is weight and torch.equal(layer.weight, data)
