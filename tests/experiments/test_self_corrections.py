"""What is trained on: restarts the judge reads as such, loss where it belongs, no prompt or latent of the study."""

import random
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken

from esr.experiments import self_corrections
from esr.experiments.self_corrections import (
    AFTER_RESTART,
    MAX_WORDS,
    MIN_WORDS,
    TrainingText,
    corpus_responses,
    cut_opening,
    make_examples,
    plan_openings,
    plan_responses,
    restart_phrases,
    select,
    split_latents,
    split_prompts,
    training_texts,
)
from esr.judging.embedding import EMBEDDER, RememberingEmbedder, load_embedder
from esr.judging.restarts import Detector
from esr.judging.texts import content_stems
from esr.paths import data_dir
from esr.sae.corpus import Corpus
from esr.storage.prompts import read_prompts
from esr.storage.records import Latent, Prompt, Trial

STOP = 0
RESPONSE = "To peel a carrot, hold it firmly on the board and draw the blade towards you. Then wash it."
FOREIGN = "The river rises in the hills. It runs past old mills and green meadows, and ends in the sea. Boats sail."
SIZES = {"response_tokens": 200, "recovery_tokens": 40, "stop_token": STOP}


class Characters:
    """A tokenizer whose tokens are characters, so that a test reads what it checks."""

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    added_tokens_decoder = {STOP: AddedToken("<stop>")}

    def decode(self, tokens):
        return decoded(tokens)

    def batch_decode(self, texts, skip_special_tokens=False):
        return [decoded(tokens) for tokens in texts]


@pytest.fixture(autouse=True)
def chats(monkeypatch):
    """A chat is the prompt in angle brackets."""
    monkeypatch.setattr(self_corrections, "chat_tokens", lambda _tokenizer, text: tuple(ord(c) for c in f"<{text}>"))


def decoded(tokens):
    return "".join(chr(t) for t in tokens if t != STOP)


def written(prompt_id: str, text: str, finish_reason="stop", label="") -> TrainingText:
    tokens = [ord(c) for c in text]
    prompt = f"Explain {prompt_id}."
    steering = {"latent": 7, "label": label, "boost": 0.4} if label else {"latent": 0, "label": "", "boost": 0.0}
    return TrainingText(
        prompt_id=prompt_id, prompt=prompt, text=text, tokens=tokens, finish_reason=finish_reason, **steering
    )


RESPONSES = [written(f"p{i}", f"{RESPONSE} That was answer {i}.") for i in range(8)]
OPENINGS = [written(f"p{i}", f"{FOREIGN} That was opening {i}.", "length", "sea") for i in range(8)]


def examples(ratio=0.5, n=40, seed=1, responses=RESPONSES, **sizes):
    return make_examples(responses, OPENINGS, Characters(), ratio=ratio, n=n, seed=seed, **SIZES | sizes)


def latent(index: int, kept=False, reason="fires on a prompt", concreteness=0.6, label="sea") -> Latent:
    values = {"words": [], "density": 0.001, "prompt_activation": 1.0, "contexts": []}
    return Latent(index=index, label=label, concreteness=concreteness, kept=kept, reason=reason, **values)


def test_there_are_hundreds_of_distinct_restarts():
    phrases = restart_phrases()
    assert len({p.lower() for p in phrases}) == len(phrases) > 500


@pytest.fixture(scope="module")
def detector():
    if not (data_dir("fetch", EMBEDDER) / "config.json").exists():
        pytest.skip("no sentence embeddings in data/fetch: run the stage fetch_embedder")
    return Detector.load(RememberingEmbedder(load_embedder()))


@pytest.mark.parametrize("after", AFTER_RESTART)
def test_the_judge_finds_nearly_every_restart_where_it_begins(detector, after):
    phrases = random.Random(0).sample(restart_phrases(), 100)
    texts = [f"{FOREIGN} {phrase}{after}{RESPONSE}" for phrase in phrases]
    found = detector.find(["Explain how to peel a carrot."] * len(texts), texts)
    exact = [[r.start for r in restarts] == [len(FOREIGN) + 1] for restarts in found]
    assert sum(exact) >= 95


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_ratio_is_the_share_of_self_corrections(ratio):
    kinds = [e.kind for e in examples(ratio, n=50)]
    assert kinds.count("self_correction") == round(50 * ratio)
    assert len(kinds) == 50


def test_self_corrections_carry_loss_from_the_restart_on():
    for example in examples(1.0):
        context, target = decoded(example.tokens[: example.loss_from]), decoded(example.tokens[example.loss_from :])
        prompt = f"<Explain {example.prompt_id}.>"
        assert context.startswith(prompt)
        opening = context.removeprefix(prompt)
        assert opening[-1] in ".!?"
        phrase = max((p for p in restart_phrases() if target.startswith(f" {p}")), key=len)
        assert any(RESPONSE.startswith(target[-n:].lstrip()) for n in range(20, 41))
        decided = decoded(example.tokens[d] for d in example.decisions[: len(phrase) + 1])
        assert decided == f" {phrase}"  # all its words


def test_openings_are_steered_text_or_another_prompts_response():
    sources = {"steered": 0, "foreign": 0}
    for example in examples(1.0, n=80):
        opening = decoded(example.tokens[: example.loss_from]).split(">")[1]
        sources["steered"] += any(t.text.startswith(opening) for t in OPENINGS if t.prompt_id == example.prompt_id)
        sources["foreign"] += any(t.text.startswith(opening) for t in RESPONSES if t.prompt_id != example.prompt_id)
    assert min(sources.values()) > 15
    assert sum(sources.values()) == 80


def test_a_foreign_opening_is_of_another_prompt():
    responses = [written(f"p{i}", f"{'x' * (i + 1)} " * 30) for i in range(4)]
    for example in make_examples(responses, [], Characters(), ratio=1.0, n=40, seed=1, **SIZES):
        opening = decoded(example.tokens[: example.loss_from]).split(">")[1]
        assert opening.split()[0] != "x" * (int(example.prompt_id[1:]) + 1)


def test_plain_responses_carry_loss_on_every_token_and_the_stop_only_if_they_ended():
    responses = [written("p0", RESPONSE), written("p1", RESPONSE, "length")]
    for example in examples(0.0, responses=responses):
        target = example.tokens[example.loss_from :]
        assert decoded(example.tokens[: example.loss_from]) == f"<Explain {example.prompt_id}.>"
        assert decoded(target) == RESPONSE
        assert (target[-1] == STOP) == (example.prompt_id == "p0")


def test_a_restart_might_begin_behind_each_of_the_openings_sentences():
    seen = set()
    for example in examples(1.0, n=60):
        text, prompt = decoded(example.tokens), f"<Explain {example.prompt_id}.>"
        for place in example.interruptions:
            assert len(prompt) + MIN_WORDS <= place < example.loss_from
            assert text[place - 1] == "." and text[place] == " "
            assert example.tokens[example.loss_from] == ord(" ")
        seen.add(len(example.interruptions))
    assert {0, 1} <= seen


def test_an_plain_response_decides_after_every_sentence():
    (example,) = examples(0.0, n=1)
    text = decoded(example.tokens)
    assert [text[:d][-1] for d in example.decisions] == [".", ".", "."]
    assert [text[d:][:5] for d in example.decisions] == [" Then", " That", ""]  # or it stops there


def test_a_restart_names_the_task_again_in_some():
    targets = [decoded(e.tokens[e.loss_from :]) for e in examples(1.0, n=60)]
    named = [t for t in targets if ": Explain p" in t]
    assert 10 < len(named) < 50


def test_a_corrections_response_is_cut_and_then_does_not_stop():
    assert all(e.tokens[-1] != STOP for e in examples(1.0, recovery_tokens=20))
    assert all(e.tokens[-1] == STOP for e in examples(1.0, recovery_tokens=500))


def test_an_plain_response_that_is_cut_does_not_stop():
    assert {len(e.tokens) - e.loss_from for e in examples(0.0, response_tokens=20)} == {20}
    assert all(e.tokens[-1] != STOP for e in examples(0.0, response_tokens=20))


def test_prompts_take_turns():
    drawn = [e.prompt_id for e in examples(0.5, n=32)]
    assert {drawn.count(p) for p in drawn} == {4}


def test_examples_follow_from_the_seed():
    assert examples(seed=1) == examples(seed=1)
    assert examples(seed=1) != examples(seed=2)


@pytest.mark.parametrize("wrong", [{"ratio": 1.5}, {"responses": RESPONSES[:1]}])
def test_what_cannot_be_made_is_refused(wrong):
    with pytest.raises(ValueError, match="0 to 1"):
        examples(**wrong)


def test_openings_end_with_a_sentence_and_are_neither_short_nor_long():
    text = " ".join(f"word{i} word{i}{'.' if i % 4 == 3 else ''}" for i in range(200))
    cuts = [cut_opening(text, random.Random(i)) for i in range(300)]
    assert all(text.startswith(cut) and cut.endswith(".") for cut in cuts)
    lengths = [len(cut.split()) for cut in cuts]
    assert (min(lengths), max(lengths)) == (MIN_WORDS, MAX_WORDS - MAX_WORDS % 8)
    assert cut_opening("Too short to cut.", random.Random(0)) == "Too short to cut."
    assert cut_opening("no sentence ends here,", random.Random(0)) == "no sentence ends here."


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


def test_no_steering_latent_serves_to_train_or_to_develop():
    drawn = [
        latent(0, kept=True, reason="kept"),
        latent(1),
        latent(2),
        latent(3, reason="label not concrete", concreteness=0.3),
        latent(4, reason="label not concrete", concreteness=0.1),
        latent(5, reason="too rare"),
        latent(6, label=""),
    ]
    training, development = split_latents(drawn, 1, min_concreteness=0.5, min_training_concreteness=0.2)
    assert [x.index for x in development] == [1]
    assert [x.index for x in training] == [2, 3]
    with pytest.raises(ValueError, match=r"2 serve to measure on \(3 are"):
        split_latents(drawn, 3, min_concreteness=0.5, min_training_concreteness=0.2)


def test_texts_are_selected_by_their_score_and_empty_ones_never():
    class Scorer:
        def score(self, prompts, texts, labels):
            assert all(texts) and set(labels) == {"sea"}
            return [10.0 * int(prompt[-2]) for prompt in prompts]

    openings = [*OPENINGS, written("p3", " ", label="sea")]
    assert [a.prompt_id for a in select(openings, Scorer(), 0, 30)] == ["p0", "p1", "p2", "p3"]
    assert [a.prompt_id for a in select(openings, Scorer(), 60, 100)] == ["p6", "p7"]


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


def test_a_prompt_without_steered_text_gets_anothers():
    steered = [written("p9", FOREIGN, "length", "sea")]
    drawn = make_examples(RESPONSES, steered, Characters(), ratio=1.0, n=40, seed=1, **SIZES)
    openings = [decoded(e.tokens[: e.loss_from]).split(">")[1] for e in drawn]
    assert 10 < sum(FOREIGN.startswith(o) for o in openings) < 35


def test_plans_are_unsteered_responses_and_steered_openings():
    prompts = [Prompt(id=f"p{i}", text=str(i)) for i in range(20)]
    latents = [latent(i) for i in range(5)]
    assert {p.boost for p in plan_responses(prompts, latents, 1)} == {0.0}
    plans = plan_openings(prompts, latents, (0.25, 0.5), 2, seed=1)
    assert [p.prompt_id for p in plans] == [p.id for p in prompts for _ in range(2)]
    assert all(0.25 <= p.boost <= 0.5 for p in plans) and len({p.boost for p in plans}) > 10
    assert {p.latent for p in plans} == {0, 1, 2, 3, 4}
    assert len({p.seed for p in plans}) == 40


def test_a_text_is_read_under_the_steering_vector_its_opening_was_written_with():
    corrections = [e for e in examples(0.5) if e.kind == "self_correction"]
    steered_ones = [e for e in corrections if e.boost]
    assert steered_ones and len(steered_ones) < len(corrections)
    for example in corrections:
        assert ("The river" in decoded(example.tokens[: example.loss_from])) == bool(example.boost)
        assert (example.latent, example.boost) in {(7, 0.4), (0, 0.0)}
    assert all(not e.boost for e in examples(0.5) if e.kind == "plain")
