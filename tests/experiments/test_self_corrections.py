"""What is trained on: restarts the judge reads as such, loss where it belongs, no prompt or latent of the study."""

import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken

from esr.experiments import self_corrections
from esr.experiments.restart_phrases import restart_phrases
from esr.experiments.self_corrections import (
    AFTER_RESTART,
    MAX_WORDS,
    MIN_WORDS,
    Material,
    Mixture,
    TrainingText,
    corpus_responses,
    cut_opening,
    development_latents,
    make_examples,
    plan_openings,
    plan_responses,
    select,
    slips,
    split_prompts,
    training_latents,
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
PHRASES = ["Wait, that's not right. Let me start over.", "Oops, I got sidetracked. Let me begin again."]


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


MATERIAL = Material(RESPONSES, OPENINGS, dict.fromkeys(PHRASES, 1), latents=[7, 8], boosts=(0.1, 0.4))


def made(material=MATERIAL, ratio=0.5, n=40, seed=1, **mixture):
    mixture = Mixture(n, ratio, **{"response_tokens": 200} | mixture)
    return make_examples(material, Characters(), mixture, stop_token=STOP, seed=seed)


def examples(ratio=0.5, **settings):
    return made(ratio=ratio, **{"foreign_share": 0.25} | settings)


def opening_of(example) -> str:
    """The opening of a self-correction."""
    return re.split("|".join(f" {re.escape(p)}" for p in PHRASES), decoded(example.tokens))[0].split(">")[1]


def latent(index: int, kept=False, reason="fires on a prompt", concreteness=0.6, label="sea") -> Latent:
    values = {"words": [], "density": 0.001, "prompt_activation": 1.0, "contexts": []}
    return Latent(index=index, label=label, concreteness=concreteness, kept=kept, reason=reason, **values)


@pytest.fixture(scope="module")
def detector():
    if not (data_dir("fetch", EMBEDDER) / "config.json").exists():
        pytest.skip("no sentence embeddings in data/fetch: run the stage fetch_embedder")
    return Detector.load(RememberingEmbedder(load_embedder()))


@pytest.mark.parametrize("after", AFTER_RESTART)
def test_the_judge_finds_nearly_every_restart_where_it_begins(detector, after):
    phrases = random.Random(0).sample(sorted(restart_phrases()), 100)
    texts = [f"{FOREIGN} {phrase}{after}{RESPONSE}" for phrase in phrases]
    found = detector.find(["Explain how to peel a carrot."] * len(texts), texts)
    exact = [[r.start for r in restarts] == [len(FOREIGN) + 1] for restarts in found]
    assert sum(exact) >= 95


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_ratio_is_the_share_of_self_corrections(ratio):
    kinds = [e.kind for e in examples(ratio, n=50)]
    assert kinds.count("correction") == round(50 * ratio)
    assert len(kinds) == 50


def test_the_other_kinds_have_their_shares_of_the_rest():
    kinds = [e.kind for e in examples(0.2, n=50, others={"steered": 0.5, "redirected": 0.1, "near_miss": 0.1})]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "correction": 10, "steered": 20, "redirected": 4, "near_miss": 4, "plain": 12
    }  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_corrections_predict_restart_and_response_and_some_decide(share):
    decided = 0
    for example in examples(1.0, decision_share=share):
        text, prompt = decoded(example.tokens), f"<Explain {example.prompt_id}.>"
        restart = re.search("|".join(f" {re.escape(p)}" for p in PHRASES), text)
        opening = text[len(prompt) : restart.start()]
        assert text.startswith(prompt) and opening[-1] in ".!?"
        assert RESPONSE.startswith(text[restart.end() :].lstrip()[:20])
        first = restart.start() + (example.decision is None)
        assert example.targets == list(range(first, len(example.tokens)))
        assert example.decision in (None, restart.start())
        decided += example.decision is not None
    assert {0.0: decided == 0, 0.5: 10 < decided < 30, 1.0: decided == 40}[share]


def test_no_second_restart_belongs_behind_the_first():
    for example in examples(1.0):
        text = decoded(example.tokens)
        end = re.search("|".join(f" {re.escape(p)}" for p in PHRASES), text).end()
        assert example.no_restart == [i for i in range(end + 1, len(text) + 1) if text[i - 1] in ".\n"]


def test_openings_are_steered_text_or_another_prompts_response():
    sources = {"steered": 0, "foreign": 0}
    for example in examples(1.0, n=80):
        opening = opening_of(example)
        sources["steered"] += any(t.text.startswith(opening) for t in OPENINGS if t.prompt_id == example.prompt_id)
        sources["foreign"] += any(t.text.startswith(opening) for t in RESPONSES if t.prompt_id != example.prompt_id)
    assert sources["steered"] > 40 and sources["foreign"] > 8
    assert sum(sources.values()) == 80
    assert all(e.boost for e in examples(1.0, foreign_share=0.0))


def test_a_foreign_opening_is_of_another_prompt():
    responses = [written(f"p{i}", f"{'x' * (i + 1)} " * 30) for i in range(4)]
    for example in made(replace(MATERIAL, responses=responses, openings=[]), ratio=1.0):
        assert opening_of(example).split()[0] != "x" * (int(example.prompt_id[1:]) + 1)


def test_a_prompt_without_steered_text_gets_anothers():
    drawn = made(replace(MATERIAL, openings=[written("p9", FOREIGN, "length", "sea")]), ratio=1.0)
    assert 25 < sum(FOREIGN.startswith(opening_of(e)) for e in drawn) <= 40


def test_plain_responses_carry_loss_on_every_token_and_the_stop_only_if_they_ended():
    responses = [written("p0", RESPONSE), written("p1", RESPONSE, "length")]
    for example in made(replace(MATERIAL, responses=responses), ratio=0.0, others={}):
        prompt = f"<Explain {example.prompt_id}.>"
        target = [example.tokens[i] for i in example.targets]
        assert decoded(example.tokens) == prompt + RESPONSE
        assert decoded(target) == RESPONSE
        assert (target[-1] == STOP) == (example.prompt_id == "p0")
        assert example.boost == 0 and example.decision is None


@pytest.mark.parametrize("kind", ["steered", "redirected", "near_miss"])
def test_texts_that_take_a_shortcut_away_teach_nothing_but_where_not_to_restart(kind):
    responses = [*RESPONSES, written("letter", f"Dear Ann. I am sorry that I was late. {RESPONSE}")]
    found = made(replace(MATERIAL, responses=responses), ratio=0.0, others={kind: 1.0})
    assert {e.kind for e in found} == {kind} and {e.decision for e in found} == {None}
    for example in found:
        text = decoded(example.tokens)
        assert [text[i - 1] for i in example.no_restart] == ["."] * len(example.no_restart) != []
        assert example.targets == [i for i in example.no_restart if i < len(text)]
    assert {e.boost > 0 for e in found} == {kind == "steered"}
    assert {e.latent for e in found} == ({7, 8} if kind == "steered" else {0})
    if kind == "near_miss":
        assert {e.prompt_id for e in found} == {"letter"}
    if kind == "redirected":
        assert all(decoded(e.tokens).count("Explain p") >= 1 and len(e.tokens) > len(RESPONSE) + 40 for e in found)


def test_a_slip_decides_not_to_restart_where_a_model_did():
    before, after = "Hold the carrot firmly. Then cut it.", " Wash it well. Dry it."
    settings = {
        "max_new_tokens": 99,
        "temperature": 0.6,
        "repetition_penalty": 1.1,
        "layer": 1,
        "model": "m",
        "seed": 1,
    }
    steered = written("p1", f"{before} Wait, no.", label="sea").model_dump()
    continuation = steered | {"text": after, "tokens": [ord(c) for c in after], "prefill": [ord(c) for c in before]}
    wrong, instead = (
        Trial(**x, **settings, condition="slip", id=str(i)) for i, x in enumerate((steered, continuation))
    )
    (example,) = (e for e in made(replace(MATERIAL, slips=slips([wrong], [instead]))) if e.kind == "slip")
    text = decoded(example.tokens)
    assert text == f"<Explain p1.>{before}{after}"
    assert example.decision == len(text) - len(after)
    assert example.targets == list(range(example.decision, len(text)))
    assert example.no_restart == [i for i in range(example.decision, len(text) + 1) if text[i - 1] == "."]
    assert example.no_restart[0] == example.decision
    assert (example.latent, example.boost) == (7, 0.4)


def test_a_response_that_is_cut_does_not_stop():
    for ratio in (0.0, 1.0):
        assert all(STOP not in e.tokens for e in examples(ratio, others={}, response_tokens=20))
        assert all(e.tokens[-1] == STOP for e in examples(ratio, others={}, response_tokens=500))


def test_prompts_take_turns():
    drawn = [e.prompt_id for e in examples(0.5, n=32, others={})]
    assert {drawn.count(p) for p in drawn} == {4}


def test_examples_follow_from_the_seed():
    assert examples(seed=1) == examples(seed=1)
    assert examples(seed=1) != examples(seed=2)


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="ratio is 1.5"):
        examples(1.5)
    with pytest.raises(ValueError, match="add up to more than 1"):
        examples(0.5, others={"steered": 0.7, "near_miss": 0.5})
    with pytest.raises(ValueError, match="There are 1 on-topic responses"):
        made(replace(MATERIAL, responses=RESPONSES[:1]))


def test_openings_end_with_a_sentence_and_are_neither_short_nor_long():
    text = " ".join(f"word{i} word{'.' if i % 4 == 3 else ''}" for i in range(200))
    cuts = [cut_opening(text, random.Random(i)) for i in range(300)]
    assert all(text.startswith(cut) and cut.endswith(".") for cut in cuts)
    lengths = [len(cut.split()) for cut in cuts]
    assert (min(lengths), max(lengths)) == (MIN_WORDS, MAX_WORDS - MAX_WORDS % 8)
    listed = "These are some of the things to know now: 1. Boats sail on the sea 2. Rivers run to it"
    assert cut_opening(listed, random.Random(0)) == f"{listed}."  # not behind the number of an item
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


def test_plans_are_unsteered_responses_and_steered_openings():
    prompts = [Prompt(id=f"p{i}", text=str(i)) for i in range(20)]
    assert {p.boost for p in plan_responses(prompts, 1)} == {0.0}
    plans = plan_openings(prompts, range(5), (0.25, 0.5), 2, seed=1)
    assert [p.prompt_id for p in plans] == [p.id for p in prompts for _ in range(2)]
    assert all(0.25 <= p.boost <= 0.5 for p in plans) and len({p.boost for p in plans}) > 10
    assert {p.latent for p in plans} == {0, 1, 2, 3, 4}
    assert len({p.seed for p in plans}) == 40


def test_a_text_is_read_under_the_steering_vector_its_opening_was_written_with():
    corrections = examples(1.0, n=80)
    assert 0 < sum(not e.boost for e in corrections) < 30
    for example in corrections:
        assert ("The river" in opening_of(example)) == bool(example.boost)
        assert (example.latent, example.boost) in {(7, 0.4), (0, 0.0)}
