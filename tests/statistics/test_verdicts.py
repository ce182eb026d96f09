from dataclasses import replace

import pytest

from esr.statistics import verdicts
from esr.statistics.estimates import Estimate


def interval(low, high):
    return Estimate(None if low is None else (low + high) / 2, low, high, 100)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.10, 0.40, "reproduced"),
        (0.05, 0.15, "reproduced"),  # smaller than published, but there
        (0.60, 0.90, "reproduced"),  # larger
        (-0.10, 0.40, "undecided at this n"),
        (-0.10, 0.20, "contradicted"),  # leaves 0.25 out
        (-0.30, -0.10, "contradicted"),  # opposite sign
        (-0.30, 0.00, "contradicted"),
        (0.00, 0.40, "undecided at this n"),  # touches zero
    ],
)
def test_effect_with_a_sign_and_a_size(low, high, verdict):
    assert verdicts.effect(interval(low, high), 0.25).verdict == verdict
    assert verdicts.effect(interval(-high, -low), -0.25).verdict == verdict  # a published decrease mirrors it
    assert verdicts.effect(interval(low + 1, high + 1), 1.25, null=1).verdict == verdict  # so does a ratio


def test_a_published_effect_that_is_uncertain_is_harder_to_contradict():
    measured = interval(-0.10, 0.20)
    published = Estimate(0.25, 0.12, 0.38, 9752)
    assert verdicts.effect(measured, 0.25).verdict == "contradicted"
    assert verdicts.effect(measured, published).verdict == "undecided at this n"
    assert verdicts.effect(interval(-0.10, 0.11), published).verdict == "contradicted"
    vague = replace(published, low=-0.05)
    assert verdicts.effect(interval(-0.10, 0.01), vague).verdict == "undecided at this n"
    assert verdicts.effect(interval(-0.10, -0.01), vague).verdict == "contradicted"  # the sign alone


def test_no_published_effect_is_no_sign_to_reproduce():
    with pytest.raises(ValueError, match="absence"):
        verdicts.effect(interval(-1, 1), 0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.01, 0.02, "reproduced"),
        (0.005, 0.02, "reproduced"),  # excludes zero, but nothing that matters
        (-0.01, 0.05, "undecided at this n"),  # includes zero, and that is not enough
        (0.01, 0.05, "undecided at this n"),
        (0.04, 0.06, "contradicted"),
        (-0.06, -0.04, "contradicted"),
    ],
)
def test_effect_that_should_be_none(low, high, verdict):
    assert verdicts.absence(interval(low, high), 0.03).verdict == verdict
    assert verdicts.absence(interval(low + 1, high + 1), 0.03, null=1).verdict == verdict


def test_absence_needs_a_margin():
    with pytest.raises(ValueError, match="smallest effect that matters"):
        verdicts.absence(interval(-1, 1), 0)


def test_rate_below_a_bound():
    below, across, above = interval(0.001, 0.009), interval(0.005, 0.02), interval(0.02, 0.05)
    assert [verdicts.bound(x, 0.01).verdict for x in (below, across, above)] == [
        "reproduced",
        "undecided at this n",
        "contradicted",
    ]
    assert verdicts.bound(above, 0.01, side="above").verdict == "reproduced"
    assert verdicts.bound(below, 0.01, side="above").verdict == "contradicted"


def test_an_interval_nobody_could_compute_decides_nothing():
    none = interval(None, None)
    for verdict in (verdicts.effect(none, 0.25), verdicts.absence(none, 0.1), verdicts.bound(none, 0.01)):
        assert verdict.verdict == "undecided at this n"
    open_below = Estimate(0.1, None, 0.2, 5)
    assert verdicts.effect(open_below, 0.25).verdict == "contradicted"


def test_the_rule_names_its_numbers():
    assert verdicts.effect(interval(0, 1), -0.25).rule == (
        "Reproduced when the interval lies below 0. "
        "Contradicted when it does not and leaves out the published -0.25 and all beyond."
    )
    assert "0.03 of 0" in verdicts.absence(interval(0, 1), 0.03).rule
    assert "below 0.01" in verdicts.bound(interval(0, 1), 0.01).rule
    assert "0.12 to 0.38" in verdicts.effect(interval(0, 1), Estimate(0.25, 0.12, 0.38, 9752)).rule
