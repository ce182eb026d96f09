"""Labels are complete, and attempts are those on which the annotators agree."""

import pytest

from esr.judging import labels
from esr.judging.labels import Labelled, read_labelled
from esr.judging.restarts import CONTENT_WORDS
from esr.judging.texts import unspaced_share
from esr.storage.records import Annotation, SampledResponse

TEXT = "The horses run. Wait, bread was asked. Mix flour. Sorry, again. Bake it."


def response(text=TEXT):
    return SampledResponse(
        id="a", part="develop", origin="run", model="m", condition="steered", boost=0.4, latent=1, label="horses",
        prompt_id="p", prompt="Explain how to bake bread.", text=text, probability=0.5,
    )  # fmt: skip


def labelled(*annotations):
    rows = [
        Annotation(id="a", annotator=str(i), starts=s, scores=v, recovered=False)
        for i, (s, v) in enumerate(annotations)
    ]
    return Labelled(response(), tuple(rows))


def test_attempts_have_the_mean_score_where_annotators_agree():
    row = labelled(([16], [4.0, 60.0]), ([22], [8.0, 40.0]))
    assert row.agrees and row.shared_starts == [16]
    assert row.attempts() == [(TEXT[:16], 6.0), (TEXT[16:], 50.0)]


def test_where_they_differ_later_only_the_first_attempt_is_used():
    row = labelled(([16, 50], [4.0, 60.0, 70.0]), ([16], [8.0, 40.0]))
    assert not row.agrees and row.attempts() == [(TEXT[:16], 6.0)]
    assert labelled(([16], [4.0, 60.0]), ([], [8.0])).attempts() == []
    assert labelled(([16], [4.0, 60.0]), ([50], [8.0, 1.0])).attempts() == []


@pytest.mark.parametrize("part", ["develop", "report"])
def test_every_shipped_response_is_labelled_twice_within_its_text(part):
    rows = read_labelled(part)
    assert len(rows) >= 150 and sum(bool(row.shared_starts) for row in rows) >= 75
    for row in rows:
        assert len({annotation.annotator for annotation in row.annotations}) >= 2
        for annotation in row.annotations:
            bounds = [0, *annotation.starts, len(row.response.text)]
            assert bounds == sorted(bounds) and all(0 <= score <= 100 for score in annotation.scores)
            attempts = [row.response.text[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
            spaced = [attempt for attempt in attempts[:-1] if unspaced_share(attempt) < 0.5]  # Qwen changes the script
            assert all(len(attempt.split()) >= CONTENT_WORDS for attempt in spaced)


def test_wrong_annotations_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "SAMPLE", tmp_path / "sample.jsonl")
    monkeypatch.setattr(labels, "ANNOTATIONS", tmp_path / "annotations.jsonl")
    (tmp_path / "sample.jsonl").write_text(response().model_dump_json() + "\n")
    row = Annotation(id="a", annotator="one", starts=[16], scores=[1.0], recovered=False)
    for wrong, message in ((row, "a, one: 1 scores of another number of attempts, 2"),
                           (row.model_copy(update={"id": "b"}), "b is not in sample.jsonl")):  # fmt: skip
        (tmp_path / "annotations.jsonl").write_text(wrong.model_dump_json() + "\n")
        with pytest.raises(ValueError, match=message):
            read_labelled("develop")
