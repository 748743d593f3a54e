"""The semigroup defect without a student: parsing of triples, and a flow whose defect is known."""

import pytest
import torch

from salt.conditioning import Conditioning
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings
from salt.schedule import Schedule, warp
from salt.semigroup_defect import parse_triples, semigroup_defect, steps_for

NOBODY = Conditioning(torch.zeros(1, 1, 1))


def test_triples_are_parsed():
    assert parse_triples("1000,750,500; 750, 500 ,250;") == [(1000, 750, 500), (750, 500, 250)]
    assert parse_triples("875,750.5,0\n") == [(875, 750.5, 0)]


@pytest.mark.parametrize("text", ["1000, 750", "1000,750,500,250", "a,b,c", "1000 750 500"])
def test_an_invalid_triple_is_named(text):
    with pytest.raises(ValueError, match=f"found '{text}', expected three falling steps"):
        parse_triples(f"1000,750,500; {text}")


@pytest.mark.parametrize("text", ["", " ; "])
def test_an_empty_list_of_triples_is_an_error(text):
    with pytest.raises(ValueError, match="triples: found none"):
        parse_triples(text)


def test_a_linear_flow_has_the_analytic_defect():
    """v = c x: Euler steps of a and b differ from one of a + b by c^2 a b x, relative to its length (a + b) c x."""
    triples, c = parse_triples("1000,875,750; 500,250,0"), 0.3
    steps, noise = steps_for(triples), SeededNoise(1, 1, 16, 4, 4)
    settings = RolloutSettings(Schedule(steps))
    found = semigroup_defect(
        lambda inputs: c * inputs.x, NOBODY, None, noise, 3, settings, triples=triples, operators=("euler",)
    )
    for triple in triples:
        s, m, e = (float(warp(step)) for step in triple)
        expected = (c * (s - m) * (m - e) / (s - e)) ** 2
        assert found[triple, "euler"] == pytest.approx(expected, rel=1e-4)
