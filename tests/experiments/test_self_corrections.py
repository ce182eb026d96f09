"""What is trained on: restarts the judge reads as such, and loss where it belongs."""

import random
import re
from dataclasses import replace

import pytest
from carrot_texts import FOREIGN, OPENINGS, RESPONSE, RESPONSES, STOP, Characters, decoded, scored, written

from esr.experiments import self_corrections
from esr.experiments.restart_phrases import restart_phrases
from esr.experiments.self_corrections import (
    AFTER_RESTART,
    Material,
    Mixture,
    make_examples,
)
from esr.judging.embedding import EMBEDDER, RememberingEmbedder, load_embedder
from esr.judging.restarts import Detector
from esr.paths import data_dir

PHRASES = ["Wait, that's not right. Let me start over.", "Oops, I got sidetracked. Let me begin again."]


@pytest.fixture(autouse=True)
def chats(monkeypatch):
    """A chat is the prompt in angle brackets."""
    monkeypatch.setattr(self_corrections, "chat_tokens", lambda _tokenizer, text: tuple(ord(c) for c in f"<{text}>"))


TEXTS = [scored(t, 40.0, 20.0, 30.0, 10.0) for t in OPENINGS]  # at the ends of their sentences
UNSTEERED = [scored(t, 50.0, 10.0, 30.0) for t in RESPONSES]
MATERIAL = Material(RESPONSES, TEXTS, UNSTEERED, 20.0, 40.0, dict.fromkeys(PHRASES, 1))


def made(material=MATERIAL, ratio=0.5, n=40, seed=1, **mixture):
    mixture = Mixture(n, ratio, **{"response_tokens": 200} | mixture)
    return make_examples(material, Characters(), mixture, stop_token=STOP, seed=seed)


def examples(ratio=0.5, **settings):
    return made(ratio=ratio, **settings)


def opening_of(example) -> str:
    """The opening of a self-correction."""
    return re.split("|".join(f" {re.escape(p)}" for p in PHRASES), decoded(example.tokens))[0].split(">")[1]


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
    kinds = [e.kind for e in examples(0.2, n=50, others={"unsteered": 0.5, "redirected": 0.1, "near_miss": 0.1})]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "correction": 10, "unsteered": 20, "redirected": 4, "near_miss": 4, "plain": 12
    }  # fmt: skip


def test_corrections_carry_loss_behind_a_restarts_first_token_and_do_not_teach_when_to_restart():
    for example in examples(1.0):
        text, prompt = decoded(example.tokens), f"<Explain {example.prompt_id}.>"
        restart = re.search("|".join(f" {re.escape(p)}" for p in PHRASES), text)
        assert text.startswith(prompt)
        assert RESPONSE.startswith(text[restart.end() :].lstrip()[:20])
        assert example.targets == list(range(restart.start() + 1, len(example.tokens)))
        assert example.restart == []


def test_no_second_restart_belongs_behind_the_first():
    for example in examples(1.0):
        text = decoded(example.tokens)
        end = re.search("|".join(f" {re.escape(p)}" for p in PHRASES), text).end()
        assert example.no_restart == [i for i in range(end + 1, len(text) + 1) if text[i - 1] in ".\n"]


def test_openings_are_what_the_untuned_model_wrote_up_to_a_place_where_it_is_off_topic():
    for example in examples(1.0, n=80):
        (text,) = [t for t in OPENINGS if t.prompt_id == example.prompt_id]
        whole, first_two = text.text, ". ".join(text.text.split(". ")[:2]) + "."
        assert opening_of(example) in (whole, first_two)  # scores 10 and 20, not 40 and 30
        assert (example.latent, example.boost) == (text.latent, text.boost)


def test_a_prompt_without_an_off_topic_text_gets_anothers():
    elsewhere = [scored(written("p9", FOREIGN, "length", "sea"), 50.0, 50.0, 5.0), scored(OPENINGS[0], 90.0)]
    drawn = made(replace(MATERIAL, texts=elsewhere), ratio=1.0)
    assert {opening_of(e) for e in drawn} == {FOREIGN}


def test_a_steered_text_asks_for_restarts_where_it_is_off_topic_and_for_none_where_it_is_on_topic():
    for example in made(ratio=0.0, others={"decision": 1.0}):
        (text,) = [t for t in OPENINGS if t.prompt_id == example.prompt_id]
        prompt = f"<Explain {example.prompt_id}.>"
        assert decoded(example.tokens) == prompt + text.text
        stops = [i + 1 for i, character in enumerate(decoded(example.tokens)) if character == "." and i > len(prompt)]
        assert example.no_restart == stops[:1] == example.targets and example.restart == [stops[1], stops[3]]
        assert (example.latent, example.boost) == (text.latent, text.boost)


def test_an_unsteered_text_asks_for_no_restart_unless_it_is_as_far_off_topic_as_a_steered_one():
    for example in made(ratio=0.0, others={"unsteered": 1.0}):
        text, prompt = decoded(example.tokens), f"<Explain {example.prompt_id}.>"
        stops = [i + 1 for i, character in enumerate(text) if character == "." and i > len(prompt)]
        assert text.startswith(prompt + RESPONSE)
        assert example.no_restart == [stops[0], stops[2]]  # scores 50 and 30, not 10
        assert example.targets == [i for i in example.no_restart if i < len(text)]
        assert (example.restart, example.boost) == ([], 0.0)


def test_an_unsteered_text_is_cut_where_responses_are():
    cut = len(RESPONSE.split(".")[0]) + 3
    for example in made(ratio=0.0, others={"unsteered": 1.0}, response_tokens=cut):
        prompt = f"<Explain {example.prompt_id}.>"
        assert decoded(example.tokens) == prompt + RESPONSE[:cut]
        assert len(example.no_restart) == 1


def test_plain_responses_carry_loss_on_every_token_and_the_stop_only_if_they_ended():
    responses = [written("p0", RESPONSE), written("p1", RESPONSE, "length")]
    for example in made(replace(MATERIAL, responses=responses), ratio=0.0, others={}):
        prompt = f"<Explain {example.prompt_id}.>"
        target = [example.tokens[i] for i in example.targets]
        assert decoded(example.tokens) == prompt + RESPONSE
        assert decoded(target) == RESPONSE
        assert (target[-1] == STOP) == (example.prompt_id == "p0")
        assert example.boost == 0 and example.restart == []


@pytest.mark.parametrize("kind", ["redirected", "near_miss"])
def test_texts_that_take_a_shortcut_away_teach_nothing_but_where_not_to_restart(kind):
    responses = [*RESPONSES, written("letter", f"Dear Ann. I am sorry that I was late. {RESPONSE}")]
    found = made(replace(MATERIAL, responses=responses), ratio=0.0, others={kind: 1.0})
    assert {e.kind for e in found} == {kind} and not any(e.restart for e in found)
    for example in found:
        text = decoded(example.tokens)
        assert [text[i - 1] for i in example.no_restart] == ["."] * len(example.no_restart) != []
        assert example.targets == [i for i in example.no_restart if i < len(text)]
    assert {e.boost for e in found} == {0.0}
    if kind == "near_miss":
        assert {e.prompt_id for e in found} == {"letter"}
    if kind == "redirected":
        assert all(decoded(e.tokens).count("Explain p") >= 1 and len(e.tokens) > len(RESPONSE) + 40 for e in found)


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
        examples(0.5, others={"unsteered": 0.7, "near_miss": 0.5})
    with pytest.raises(ValueError, match="There are 1 on-topic responses"):
        made(replace(MATERIAL, responses=RESPONSES[:1]))
    with pytest.raises(ValueError, match="None of 8 steered texts is off topic"):
        made(replace(MATERIAL, max_off_topic_score=5.0))
