"""Texts, prompts and latents to train with are none of the study's."""

import pytest
import torch
from carrot_texts import OPENINGS, STOP, Characters, decoded, written

from esr.experiments.training_texts import (
    corpus_responses,
    development_latents,
    plan_openings,
    score_sentence_ends,
    select,
    split_prompts,
    training_latents,
    training_texts,
)
from esr.judging.texts import content_stems
from esr.sae.corpus import Corpus
from esr.storage.prompts import read_prompts
from esr.storage.records import Latent, Prompt, Trial


def latent(index: int, kept=False, reason="fires on a prompt", concreteness=0.6, label="sea") -> Latent:
    values = {"words": [], "density": 0.001, "prompt_activation": 1.0, "contexts": []}
    return Latent(index=index, label=label, concreteness=concreteness, kept=kept, reason=reason, **values)


def test_prompts_differ_from_those_that_are_measured_on():
    measured = [p for split in ("evaluation", "held_out") for p in read_prompts(split)]
    prompts = read_prompts("finetune")
    assert len(prompts) >= 240
    assert not {p.text for p in prompts} & {p.text for p in measured}
    shared = {
        (p.text, q.text): set(content_stems(p.text)) & set(content_stems(q.text)) for p in prompts for q in measured
    }
    assert {pair: stems for pair, stems in shared.items() if len(stems) > 1} == {}


def test_development_prompts_are_left_out_of_training():
    prompts = [Prompt(id=f"p{i}", text=str(i)) for i in range(20)]
    training, development = split_prompts(prompts, 5, seed=1)
    assert len(development) == 5
    assert sorted(training + development, key=lambda p: int(p.text)) == prompts
    assert split_prompts(prompts, 5, seed=1) == (training, development) != split_prompts(prompts, 5, seed=2)
    with pytest.raises(ValueError, match="n_development is 20"):
        split_prompts(prompts, 20, seed=1)


def test_settings_are_chosen_on_latents_that_the_study_leaves_out():
    drawn = [
        latent(0, kept=True, reason="kept"),
        latent(1),
        latent(2),
        latent(3, reason="label not concrete", concreteness=0.3),
        latent(5, reason="too rare"),
        latent(6, label=""),
    ]
    assert [x.index for x in development_latents(drawn, 1, min_concreteness=0.5)] == [1]
    with pytest.raises(ValueError, match="2 serve to choose settings on, and 3"):
        development_latents(drawn, 3, min_concreteness=0.5)


def test_no_training_latent_is_held_out_or_like_one():
    directions = torch.eye(8)
    directions[5] = directions[0] * 0.8 + directions[5] * 0.6
    directions[6] = -directions[1]
    assert training_latents(directions, [0, 1], 4, 0.5, seed=1) == [2, 3, 4, 7]
    assert training_latents(directions, [0, 1], 5, 0.9, seed=1) == [2, 3, 4, 5, 7]
    with pytest.raises(ValueError, match="4 latents are unlike the 2 held out, and n_latents is 5"):
        training_latents(directions, [0, 1], 5, 0.5, seed=1)


def test_texts_are_selected_by_their_score_and_empty_ones_never():
    class Scorer:
        def score(self, prompts, texts, labels):
            assert all(texts) and set(labels) == {"sea"}
            return [10.0 * int(prompt[-2]) for prompt in prompts]

    openings = [*OPENINGS, written("p3", " ", label="sea")]
    assert [a.prompt_id for a in select(openings, Scorer(), 0, 30)] == ["p0", "p1", "p2", "p3"]
    assert [a.prompt_id for a in select(openings, Scorer(), 60, 100)] == ["p6", "p7"]


def test_every_sentence_end_has_the_best_score_of_itself_and_the_next_two():
    sentences = ["A first one of five words.", "Two.", "Three is here.", "Four comes last."]
    text = written("p0", "\n".join(sentences), "length", "sea")

    class Scorer:
        """Scores the text up to each sentence by its number of sentences."""

        scores = (9.0, 1.0, 7.0, 2.0)

        def score(self, prompts, texts, distractors):
            assert set(prompts) == {text.prompt} and set(distractors) == {"sea"}
            return [self.scores[part.count(".") - 1] for part in texts]

    (scored, empty) = score_sentence_ends([text, written("p1", "Never ends")], Scorer(), Characters())
    assert scored.text is text and empty.ends == ()
    ends = [len("\n".join(sentences[: i + 1])) for i in range(4)]
    # A restart may begin before or behind the line break, so both are ends.
    places = [ends[0], ends[0] + 1, ends[1], ends[1] + 1, ends[2], ends[2] + 1, ends[3]]
    best = [9.0, 9.0, 7.0, 7.0, 7.0, 7.0, 2.0]
    assert [(end.tokens, end.score) for end in scored.ends] == list(zip(places, best, strict=True))
    (whole,) = score_sentence_ends([written("p0", "no sentence anywhere", "length", "sea")], Scorer(), Characters())
    assert whole.ends == ((20, 2.0),)


def test_trials_become_responses():
    settings = {"max_new_tokens": 9, "temperature": 0.6, "repetition_penalty": 1.1, "layer": 1}
    names = {"model": "m", "condition": "opening", "seed": 1, "id": "x"}
    response = OPENINGS[2]
    assert training_texts([Trial(**response.model_dump(), **settings, **names)]) == [response]


def test_corpus_responses_are_requests_and_what_was_written():
    texts = [("bake", "short"), ("sail", "word " * 30), ("knit", "other " * 40)]
    tokens, starts, begins = [], [], []
    for request, response in texts:
        starts.append(len(tokens))
        tokens += [ord(c) for c in f"<{request}" + chr(STOP) + response]
        begins.append(len(request) + 2)
    none = torch.zeros(0)
    corpus = Corpus(torch.tensor(tokens), torch.tensor(starts), torch.tensor(begins), 1, none, none)
    found = corpus_responses(corpus, Characters(), 2, seed=1)
    assert {(a.prompt, a.text, decoded(a.tokens)) for a in found} == {(r, t, t) for r, t in texts[1:]}
    assert {a.finish_reason for a in found} == {"length"} and len({a.prompt_id for a in found}) == 2
    with pytest.raises(ValueError, match="3 .* of the corpus are .*; 2"):
        corpus_responses(corpus, Characters(), 3, seed=1)


def test_steered_texts_have_drawn_latents_and_boosts():
    prompts = [Prompt(id=f"p{i}", text=str(i)) for i in range(20)]
    plans = plan_openings(prompts, range(5), (0.25, 0.5), 2, seed=1)
    assert [p.prompt_id for p in plans] == [p.id for p in prompts for _ in range(2)]
    assert all(0.25 <= p.boost <= 0.5 for p in plans) and len({p.boost for p in plans}) > 10
    assert {p.latent for p in plans} == {0, 1, 2, 3, 4}
    assert len({p.seed for p in plans}) == 40
