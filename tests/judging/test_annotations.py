"""The annotated responses: enough of each kind, labels that fit their texts, two parts alike."""

from collections import Counter

from esr.paths import DATA
from esr.storage.files import read_rows
from esr.storage.records import AnnotatedResponse

ANNOTATED = read_rows(DATA / "judge" / "annotated.jsonl", AnnotatedResponse)


def test_there_are_enough_of_each_kind():
    assert len(ANNOTATED) >= 240 and len({x.id for x in ANNOTATED}) == len({x.text for x in ANNOTATED}) == len(
        ANNOTATED
    )
    assert sum(bool(x.starts) for x in ANNOTATED) >= 70
    assert sum(x.near_miss for x in ANNOTATED) >= 40
    assert {"unsteered", "steered"} == {x.condition for x in ANNOTATED} and len({x.boost for x in ANNOTATED}) >= 4


def test_labels_fit_their_texts():
    for x in ANNOTATED:
        assert len(x.scores) == 1 + len(x.starts) and all(0 <= score <= 100 for score in x.scores)
        assert x.starts == sorted(set(x.starts)) and all(0 < start < len(x.text) for start in x.starts)
        assert all(not x.text[start].isspace() for start in x.starts), x.id
        assert not (x.near_miss and x.starts)


def test_both_parts_hold_as_many_of_each_kind():
    kinds = {
        part: Counter((bool(x.starts), x.near_miss) for x in ANNOTATED if x.part == part)
        for part in ("develop", "report")
    }
    assert kinds["develop"].keys() == kinds["report"].keys()
    assert all(abs(kinds["develop"][kind] - kinds["report"][kind]) <= 1 for kind in kinds["report"])
