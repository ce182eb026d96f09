"""An inverted U is a difference above 0, a slope is none, and only trials scored at all these boosts count."""

import pytest
from conftest import judgement

from esr.experiments.boost_sweep import middle_minus_ends
from esr.statistics.metrics import table

NAMES = ["-3 sd", "-1 sd", "+1 sd", "+3 sd"]
FEW = {"n_bootstrap": 400, "seed": 1}


def sweep(*restarts, latents=20, names=NAMES):
    """One trial for each latent and boost; `restarts`: by boost, the number of latents that restart there."""
    return table([
        judgement(latent=latent, scores=(20.0, 40.0) if latent < count else (20.0,), condition=name)
        for name, count in zip(names, restarts, strict=True) for latent in range(latents)
    ])  # fmt: skip


def test_the_difference_by_hand():
    found = middle_minus_ends(sweep(2, 12, 8, 4), NAMES, **FEW)
    assert found.estimate == pytest.approx((12 + 8 - 2 - 4) / 2 / 20) and found.n == 20
    assert 0 < found.low < found.high


def test_a_slope_is_no_inverted_u():
    found = middle_minus_ends(sweep(4, 8, 12, 16), NAMES, **FEW)
    assert found.estimate == pytest.approx(0) and found.low < 0 < found.high


def test_an_odd_number_of_boosts_has_one_middle_and_two_have_none():
    assert middle_minus_ends(sweep(2, 12, 4, names=NAMES[:3]), NAMES[:3], **FEW).estimate == pytest.approx(9 / 20)
    assert middle_minus_ends(sweep(2, 12, names=NAMES[:2]), NAMES[:2], **FEW).estimate == 0


def test_a_trial_that_is_not_scored_at_one_of_the_boosts_is_left_out():
    frame = sweep(2, 12, 8, 4)
    frame.loc[(frame.condition == "+3 sd") & (frame.latent == 0), "outcome"] = "empty"
    assert middle_minus_ends(frame, NAMES, **FEW).n == 19
    assert middle_minus_ends(frame[frame.condition != "+3 sd"], NAMES, **FEW).n == 0
