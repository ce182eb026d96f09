"""Rates of trainings, and what several say together."""

import pandas as pd
import pytest

from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.metrics import COLUMNS
from esr.statistics.outcomes import cut_table
from esr.statistics.trainings import mean_of, over_trainings, rates


def trials(*scores) -> pd.DataFrame:
    """One trial per tuple of attempts' scores, each of a latent of its own."""
    rows = [
        {
            "model": "m", "condition": "c", "latent": i, "prompt_id": "p", "seed": 0, "outcome": "scored",
            "attempts": len(attempts), "first_score": attempts[0], "last_score": attempts[-1], "degraded": False,
            "unverified": 0, "first_restart": 0.3, "last_restart": 0.5, "first_third": 50.0, "last_third": 50.0,
        }
        for i, attempts in enumerate(scores)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_training_is_measured_by_restarts_loops_and_what_follows_off_topic_openings():
    steered = trials((20.0, 70.0), (10.0, 15.0), (80.0, 90.0), (20.0, 10.0, 60.0), (50.0,))
    found = rates({"steered": steered, "unsteered": trials((80.0,), (70.0,), (75.0,), (60.0, 70.0))}, cut_table([]))
    assert found["restart_rate"]["steered"].estimate == 4 / 5
    assert found["restart_rate"]["unsteered"].estimate == 1 / 4
    behind = {name: found[f"restarts_{name}"]["steered"] for name in ("off_topic", "on_topic")}
    assert {name: (rate.estimate, rate.n) for name, rate in behind.items()} == {
        "off_topic": (1, 3),
        "on_topic": (0.5, 2),
    }
    assert found["restarts_off_topic"]["unsteered"].n == 0 and found["restarts_on_topic"]["unsteered"].n == 4
    assert found["loops"].estimate == 1 / 4
    assert (found["on_topic_after_restart"].estimate, found["on_topic_after_restart"].n) == (2 / 3, 3)
    assert found["esr_rate"].estimate == 4 / 5


def test_trainings_are_random_effects():
    each = [{"loops": Estimate(rate, 0.0, 1.0, 100), "rate": {"steered": NOTHING}} for rate in (0.1, 0.2, 0.3)]
    together = over_trainings(each, 0.95)
    loops = together["loops"]
    assert (loops.estimate, loops.n) == (pytest.approx(0.2), 300)
    assert loops.high - loops.estimate == pytest.approx(4.302653 * 0.1 / 3**0.5)  # t of two degrees of freedom
    assert together["rate"]["steered"] == NOTHING
    assert mean_of([Estimate(0.1, 0.0, 0.2, 7)], 0.95) == Estimate(0.1, None, None, 7)
