from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ListedRestarts

from esr.judging.offline import OfflineJudge, is_degraded, load_judge, split_attempts
from esr.judging.restarts import Restart
from esr.statistics.metrics import table
from esr.storage.records import Trial

FIRST = "Gather the horses and brush their manes every single day of the week."
SECOND = "Mix flour, water, salt and yeast, knead the dough and bake it for half an hour."
RESTART = "Wait, that's not right. Let me start over."


class WordCount:
    """Scores the share of words that are about bread; remembers what it was inputs."""

    fingerprint = "words"

    def score(self, prompts, texts, distractors):
        self.inputs = list(zip(prompts, texts, distractors, strict=True))
        bread = {"flour", "dough", "yeast", "bake", "knead"}
        return np.array([100 * len(bread & set(t.lower().replace(",", "").split())) / len(bread) for t in texts])


def judge_by(scorer):
    return OfflineJudge(scorer, ListedRestarts())


def trial(text, number=0, **changes):
    fields = {
        "id": f"t{number}", "model": "m", "condition": "steered", "latent": number, "label": "horses, mane",
        "prompt_id": "evaluation-02", "prompt": "Explain how to bake bread.", "seed": 1, "boost": 0.4, "layer": 2,
        "max_new_tokens": 9, "temperature": 0.6, "repetition_penalty": 1.1, "tokens": [], "text": text,
        "finish_reason": "stop",
    }  # fmt: skip
    return Trial(**(fields | changes))


def test_each_attempt_is_scored_by_its_text():
    scorer = WordCount()
    (judgement,) = judge_by(scorer).judge([trial(f"{FIRST} {RESTART} {SECOND}")])
    first, last = judgement.attempts
    assert judgement.outcome == "scored" and (first.score, last.score) == (0.0, 100.0)
    assert (first.start, first.restart, last.restart) == (0, "", RESTART)
    assert first.end == last.start == len(FIRST) + 1 and last.end == len(FIRST) + len(RESTART) + len(SECOND) + 2
    assert [text.strip() for _, text, _ in scorer.inputs][:2] == [FIRST, SECOND]
    assert {(p, d) for p, _, d in scorer.inputs} == {("Explain how to bake bread.", "horses, mane")}


def test_responses_keep_their_scores_in_a_batch():
    texts = [SECOND, "", FIRST, f"{FIRST} {RESTART} {SECOND}", "  \n ", SECOND]
    trials = [trial(text, i) for i, text in enumerate(texts)]
    judgements = judge_by(WordCount()).judge(trials)
    assert [j.trial_id for j in judgements] == [t.id for t in trials]
    assert [[a.score for a in j.attempts] for j in judgements] == [[100.0], [], [0.0], [0.0, 100.0], [], [100.0]]
    assert [j.outcome for j in judgements] == ["scored", "empty", "scored", "scored", "empty", "scored"]
    assert table(judgements).attempts.tolist() == [1, 0, 1, 2, 0, 1]
    assert judge_by(WordCount()).judge([]) == []


def test_gibberish_is_one_attempt():
    (judgement,) = judge_by(WordCount()).judge([trial("the the ( ( # 9 bloo bloo. wait wait sorry sorry")])
    assert judgement.outcome == "scored" and len(judgement.attempts) == 1


@pytest.mark.parametrize(
    ("text", "degraded"),
    [
        ("bread bread bread bread bread", True),
        ("so Bread, bread! bread\nbread... BREAD it is", True),
        ("bread bread bread bread", False),
        ("bread bread breads bread bread bread", False),
        ("a b a b a b a b a b", False),
        ("( ( ( ( ( (", False),
        ("no no no no now no", False),
        ("7 7 7 7 7", True),
        ("", False),
    ],
)
def test_degraded_is_the_same_word_five_times_in_a_row(text, degraded):
    assert is_degraded(text) is degraded
    assert judge_by(WordCount()).judge([trial(text)])[0].degraded is degraded


def test_the_judge_is_named_after_scorer_and_detector():
    one, other = WordCount(), WordCount()
    other.fingerprint = "other words"
    assert judge_by(one).name == judge_by(WordCount()).name != judge_by(other).name
    assert judge_by(one).judge([trial(FIRST)])[0].judge == judge_by(one).name


def test_attempts_cover_the_response():
    text = f" {FIRST}\n\n{RESTART} {SECOND} Oops, I made a mistake. {SECOND}\n"
    spans = split_attempts(text, ListedRestarts().find([""], [text])[0])
    assert len(spans) == 3 and "".join(text[start:end] for start, end, *_ in spans) == text
    assert split_attempts(" \n", []) == []
    assert split_attempts("ab cd ef", [Restart(3, "cd")]) == [(0, 3, "", "ab "), (3, 8, "cd", " ef")]


def test_prompts_reach_the_detector():
    class Prompted(ListedRestarts):
        def find(self, prompts, texts):
            found = super().find(prompts, texts)
            return [restarts if "bread" in prompt else [] for prompt, restarts in zip(prompts, found, strict=True)]

    text = f"{FIRST} {RESTART} {SECOND}"
    trials = [trial(text), trial(text, 1, prompt="Explain how to ride.")]
    judgements = OfflineJudge(WordCount(), Prompted()).judge(trials)
    assert [len(j.attempts) for j in judgements] == [2, 1]


def test_a_missing_scorer_names_the_stage_that_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("esr.judging.offline.base_of", lambda model: model)
    monkeypatch.setattr("esr.judging.embedding.data_dir", lambda stage, model=None: tmp_path / stage)
    with pytest.raises(FileNotFoundError, match="fetch_embedder"):
        load_judge("m")
    monkeypatch.setattr("esr.judging.offline.load_embedder", lambda: SimpleNamespace(words=frozenset()))
    monkeypatch.setattr("esr.judging.offline.data_dir", lambda stage, model=None: tmp_path / stage)
    with pytest.raises(FileNotFoundError, match="scorer.json"):
        load_judge("m")


def test_the_judges_name_changes_with_what_counts_as_a_restart():
    other = ListedRestarts()
    other.fingerprint = "other"
    assert OfflineJudge(WordCount(), other).name != judge_by(WordCount()).name


def test_a_response_that_never_restarts_is_cut_between_pieces_for_placebos_and_in_thirds():
    text = " ".join(2 * sentence for sentence in (f"{FIRST} ", f"{SECOND} ", f"{FIRST} ", f"{FIRST} ", f"{SECOND} "))
    plain, restarting = judge_by(WordCount()).judge([trial(text), trial(f"{FIRST} {RESTART} {SECOND}", 1)])
    assert [text[cut.at :].strip()[:6] for cut in plain.cuts] == ["Mix fl", "Gather", "Gather", "Mix fl"]
    assert [(cut.before, cut.after) for cut in plain.cuts] == [(0, 100), (100, 100), (100, 100), (100, 100)]
    assert len(plain.thirds) == 3 and restarting.cuts == [] and len(restarting.thirds) == 2
    short = judge_by(WordCount()).judge([trial("Bake it."), trial("a b", 1), trial(" ", 2)])
    assert [(j.cuts, len(j.thirds)) for j in short] == [([], 1), ([], 1), ([], 0)]
