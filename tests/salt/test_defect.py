"""The semigroup defect's own parts, without a student: what is written as triples, and a flow whose defect is known."""

import pytest
import torch

from salt.conditioning import Conditioning
from salt.noise import SeededNoise
from salt.rollout import RolloutSettings
from salt.schedule import Schedule, warp
from salt.semigroup_defect import parse_triples, semigroup_defect, steps_for

NOBODY = Conditioning(torch.zeros(1, 1, 1))


def test_triples_are_read_from_a_line():
    assert parse_triples("1000,750,500; 750, 500 ,250;") == [(1000, 750, 500), (750, 500, 250)]
    assert parse_triples("875,750.5,0\n") == [(875, 750.5, 0)]


@pytest.mark.parametrize("text", ["1000, 750", "1000,750,500,250", "a,b,c", "1000 750 500"])
def test_a_part_that_is_no_triple_is_named(text):
    with pytest.raises(ValueError, match=f"found '{text}', expected three falling steps"):
        parse_triples(f"1000,750,500; {text}")


@pytest.mark.parametrize("text", ["", " ; "])
def test_no_triple_at_all_is_said(text):
    with pytest.raises(ValueError, match="triples: found none"):
        parse_triples(text)


def test_a_velocity_that_is_a_number_times_x_has_the_defect_worked_out_by_hand():
    """v = c x: two Euler steps of a and b leave c^2 a b x more than one of a + b, over a way of (a + b) c x."""
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
