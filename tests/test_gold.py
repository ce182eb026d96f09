"""The labelled answers: enough of each kind, labels that fit their texts, two parts alike."""

from collections import Counter

from esr.paths import DATA
from esr.storage.files import read_rows
from esr.storage.records import AnnotatedResponse

GOLD = read_rows(DATA / "judge" / "annotated.jsonl", AnnotatedResponse)


def test_there_are_enough_of_each_kind():
    assert len(GOLD) >= 240 and len({g.id for g in GOLD}) == len({g.text for g in GOLD}) == len(GOLD)
    assert sum(bool(g.starts) for g in GOLD) >= 70
    assert sum(g.near_miss for g in GOLD) >= 40
    assert {"unsteered", "steered"} == {g.condition for g in GOLD} and len({g.boost for g in GOLD}) >= 4


def test_labels_fit_their_texts():
    for g in GOLD:
        assert len(g.scores) == 1 + len(g.starts) and all(0 <= score <= 100 for score in g.scores)
        assert g.starts == sorted(set(g.starts)) and all(0 < start < len(g.text) for start in g.starts)
        assert all(not g.text[start].isspace() for start in g.starts), g.id
        assert not (g.near_miss and g.starts)


def test_both_parts_hold_as_many_of_each_kind():
    kinds = {
        part: Counter((bool(g.starts), g.near_miss) for g in GOLD if g.part == part) for part in ("develop", "report")
    }
    assert kinds["develop"].keys() == kinds["report"].keys()
    assert all(abs(kinds["develop"][kind] - kinds["report"][kind]) <= 1 for kind in kinds["report"])
