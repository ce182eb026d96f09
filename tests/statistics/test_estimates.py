"""The one shape of a measured number: read from JSON as such, and subtracted with both uncertainties."""

import json

from esr.statistics.estimates import NOTHING, Estimate, difference, from_json


def test_a_difference_is_as_uncertain_as_both_sides():
    one, other = Estimate(0.5, 0.375, 0.75, 30), Estimate(0.25, 0.125, 0.375, 20)
    assert difference(one, other) == Estimate(0.25, 0.0, 0.625, 20)
    assert difference(Estimate(0.5, None, 0.75, 30), other) == Estimate(0.25, None, 0.625, 20)
    assert difference(NOTHING, other) == NOTHING
    assert difference(None, other) is None and difference(one, None) is None


def test_objects_of_that_shape_are_read_as_estimates_and_no_others():
    text = json.dumps({"rate": vars(Estimate(0.5, None, 1.0, 3)), "other": {"estimate": 0.5, "n": 3}})
    assert json.loads(text, object_hook=from_json) == {
        "rate": Estimate(0.5, None, 1.0, 3), "other": {"estimate": 0.5, "n": 3}
    }  # fmt: skip


def test_what_is_known_and_bounded():
    assert not NOTHING.is_known and not NOTHING.is_bounded
    assert Estimate(0.5, 0.0, None, 3).is_known and not Estimate(0.5, 0.0, None, 3).is_bounded
    assert Estimate(0.5, 0.0, 1.0, 3).is_bounded
