"""Responses to annotate are a random sample; annotations are asked for blind and kept one by one."""

import pytest

from esr.judging.labelling import annotate, draw, place
from esr.storage.files import read_rows
from esr.storage.records import Annotation, Trial

TEXT = "Gather the horses. Wait, that is about horses. Mix flour and water."


def trial(number, condition="steered", text=TEXT):
    return Trial(
        id=f"{number:012d}{condition}", model="m", condition=condition, latent=number, label="horses",
        prompt_id="evaluation-01", prompt="Explain how to bake bread.", seed=1, boost=0.4, layer=2, max_new_tokens=9,
        temperature=0.6, repetition_penalty=1.1, tokens=[], text=text, finish_reason="stop",
    )  # fmt: skip


@pytest.fixture
def sample():
    return draw([trial(i) for i in range(3)], 3, 0, "run", "develop")


class Script:
    """Replies in order; remembers what was shown."""

    def __init__(self, *replies):
        self.replies, self.seen = list(replies), []

    def reply(self, question):
        self.seen.append(question)
        return self.replies.pop(0)

    def show(self, text):
        self.seen.append(text)


def test_a_sample_is_random_within_each_condition_with_its_probability():
    trials = [trial(i) for i in range(40)] + [trial(i, "unsteered") for i in range(10)] + [trial(99, text="  ")]
    drawn = draw(trials, 20, 0, "run", "develop")
    assert [sum(r.condition == c for r in drawn) for c in ("steered", "unsteered")] == [20, 10]
    assert {(r.condition, r.probability) for r in drawn} == {("steered", 0.5), ("unsteered", 1.0)}
    assert draw(trials, 20, 0, "run", "develop") == drawn != draw(trials, 20, 1, "run", "develop")
    counts = [
        sum(r.latent == 7 and r.condition == "steered" for r in draw(trials, 20, s, "run", "develop"))
        for s in range(200)
    ]
    assert 70 < sum(counts) < 130


def test_an_annotator_does_not_see_the_condition(sample, tmp_path):
    script = Script("", "50", "n", "", "")
    annotate(sample, "one", tmp_path / "a.jsonl", script.reply, script.show)
    shown = "\n".join(script.seen)
    assert TEXT in shown and "Explain how to bake bread." in shown
    assert not any(word in shown for word in ("steered", "0.4", "label", "run-"))


def test_annotations_are_kept_one_by_one_and_a_session_goes_on_where_it_ended(sample, tmp_path):
    file = tmp_path / "judge" / "annotations.jsonl"
    script = Script("Wait, that", "", "5", "80", "y", "", "")  # one response, then stop
    assert annotate(sample, "one", file, script.reply, script.show) == 1
    [row] = read_rows(file, Annotation)
    assert (row.id, row.starts, row.scores, row.recovered) == (sample[0].id, [19], [5.0, 80.0], True)
    script = Script("", "1", "n", "", "2", "n")
    assert annotate(sample, "one", file, script.reply, script.show) == 2
    assert [r.id for r in read_rows(file, Annotation)] == [r.id for r in sample]
    script = Script(*["", "1", "n"] * 3)
    assert annotate(sample, "other", file, script.reply, script.show) == 3


def test_mistakes_are_named_and_may_be_typed_again(sample, tmp_path):
    script = Script("Hold on", "Wait, that", "", "high", "101", "5", "80", "maybe", "y", "", "")
    annotate(sample, "one", tmp_path / "a.jsonl", script.reply, script.show)
    shown = "\n".join(script.seen)
    assert "'Hold on' is not in the response" in shown and "'high' is no number" in shown and "Answer y or n." in shown


def test_a_restart_is_found_by_its_first_words():
    assert place(TEXT, "Wait") == 19
    with pytest.raises(ValueError, match="occurs more than once"):
        place(TEXT, "horses")
    with pytest.raises(ValueError, match="not in the response after character 20"):
        place(TEXT, "Wait", 20)
