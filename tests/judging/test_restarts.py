"""Neighbouring sentences of restart language are one restart; the shipped detector tells restarts from their like.

data/judge/restart_examples.jsonl holds the lines of restart_language.txt, in other contexts: they show that the fit
took what it was shown. The tables below are worded afresh.
"""

from pathlib import Path

import numpy as np
import pytest

from esr.judging.embedding import EMBEDDER, RememberingEmbedder, load_embedder
from esr.judging.restart_features import FEATURES, ParsedResponse
from esr.judging.restarts import DETECTOR, Detector, group
from esr.paths import data_dir

PROMPT = "Explain how to bake bread."
BEFORE = "To bake bread, you first gather the horses and brush their manes every day of the week."
AFTER = "A good way to bake bread is to mix flour, water, salt and yeast and knead the dough."
PLAIN = (
    "Mix the flour with the water, the salt and the yeast. Knead the dough on a floured board until it is smooth. "
    "The dough rises for an hour in a warm place. Shape the loaf and place it in the tin. The oven is heated to 220 "
    "degrees. The loaf bakes for half an hour, and its crust turns brown."
)
CASES = [
    (line[0] == "+", line[2:].replace("\\n", "\n"))
    for line in (Path(__file__).parent / "restart_language.txt").read_text(encoding="utf-8").splitlines()
    if line[0] in "+-"
]


def grouped(text, scores):
    """Phrases of the restarts of a text whose sentences have these probabilities."""
    parsed = ParsedResponse(PROMPT, text)
    assert len(parsed.sentences) == len(scores)
    return [restart.phrase for restart in group(parsed, np.array(scores, dtype=float))]


def test_neighbouring_sentences_of_restart_language_are_one_restart():
    text = f"{BEFORE} Wait, no. That is wrong. Let me start over. {AFTER}"
    assert grouped(text, [0, 0.9, 0.3, 0.5, 0]) == ["Wait, no. That is wrong. Let me start over."]
    assert grouped(text, [0, 0.3, 0.3, 0, 0]) == ["Wait, no. That is wrong."]  # as likely as one of 0.51


def test_few_words_between_do_not_split_a_restart_and_content_does():
    assert grouped(f"{BEFORE} Sorry. It is late. I restart. {AFTER}", [0, 0.9, 0, 0.9, 0]) == [
        "Sorry. It is late. I restart."
    ]
    text = f"{BEFORE} Sorry. {AFTER} I restart. {AFTER}"
    assert grouped(text, [0, 0.9, 0, 0.9, 0]) == ["Sorry.", "I restart."]


def test_one_sentence_about_the_writer_does_not_split_a_restart_and_two_do():
    slip = "I was describing the horses for some reason."
    assert grouped(f"{BEFORE} Wait. {slip} I restart. {AFTER}", [0, 0.9, 0, 0.9, 0]) == [f"Wait. {slip} I restart."]
    assert len(grouped(f"{BEFORE} Wait. {slip} {slip} I restart. {AFTER}", [0, 0.9, 0, 0, 0.9, 0])) == 2
    assert len(grouped(f"{BEFORE} Wait. The horses eat all day long. I restart. {AFTER}", [0, 0.9, 0, 0.9, 0])) == 2


def test_a_restart_begins_with_its_first_likely_sentence():
    assert grouped(f"{BEFORE} So it is. Sorry. {AFTER}", [0, 0.2, 0.9, 0]) == ["Sorry."]
    assert grouped(f"{BEFORE} Oops. Sorry. {AFTER}", [0, 0.7, 0.9, 0]) == ["Oops. Sorry."]


def test_five_words_come_before_and_after_a_restart():
    assert grouped(f"Four words of it. Sorry. {AFTER}", [0, 0.9, 0]) == []
    assert grouped(f"Five words make an attempt. Sorry. {AFTER}", [0, 0.9, 0]) == ["Sorry."]
    assert grouped(f"{BEFORE} Sorry. Four words of it.", [0, 0.9, 0]) == []
    assert grouped(f"{BEFORE} Sorry.", [0, 0.9]) == []
    assert grouped("Sorry. Let me begin.", [0.9, 0.9]) == []


@pytest.fixture(scope="module")
def detector():
    if not (data_dir("fetch", EMBEDDER) / "config.json").exists():
        pytest.skip("no sentence embeddings in data/fetch: run the stage fetch_embedder")
    return Detector.load(RememberingEmbedder(load_embedder()))


def starts(detector, text, prompt=PROMPT):
    return [restart.start for restart in detector.find([prompt], [text])[0]]


def test_nearly_all_listed_restarts_are_found_where_they_begin(detector):
    phrases = [phrase for restart, phrase in CASES if restart]
    found = detector.find([PROMPT] * len(phrases), [f"{BEFORE} {phrase} {AFTER}" for phrase in phrases])
    exact = [[r.start for r in restarts] == [len(BEFORE) + 1] for restarts in found]
    assert np.mean(exact) > 0.9


@pytest.mark.parametrize("between", [" ", "\n\n"], ids=["sentence", "paragraph"])
def test_listed_near_misses_are_rarely_restarts(detector, between):
    phrases = [phrase for restart, phrase in CASES if not restart]
    texts = [f"{BEFORE}{between}{phrase}{between}{AFTER}" for phrase in phrases]
    assert np.mean([bool(found) for found in detector.find([PROMPT] * len(texts), texts)]) < 0.4


def test_a_mistake_confessed_in_several_sentences_splits_a_response_in_two(detector):
    """The form of the paper's example, in other words."""
    wandering = (
        "To bake bread, you preheat the oven. Your lungs then take in oxygen, and the heart pumps it to every organ. "
        "The liver cleans the blood, and the kidneys filter what is left."
    )
    restart = (
        "Wait, that was a mistake! I was describing the organs of the body for some reason. Sorry about the error. "
    )
    text = f"{wandering} {restart}Let me begin again. {AFTER}"
    assert starts(detector, text) == [len(wandering) + 1]


RESTARTS = [
    (
        "How do I repot a fern?",
        "Trams in the city run until midnight, and a day ticket is valid on all of the lines.\n\n",
        "Hmm, none of this is about ferns. I will begin anew.\n\n",
        "Lift the fern out, loosen the roots and set it in a pot one size larger with fresh soil.",
    ),
    (
        "What is the capital of Australia?",
        "The capital of Australia is Sydney, which has a famous opera house. ",
        "Sorry, I got that wrong. ",
        "The capital is Canberra, which was chosen as a compromise in 1908.",
    ),
    (
        "List three citrus fruits.",
        "1. Hammer\n2. Chisel\n3. Saw with a wooden handle\n\n",
        "Oops, this list is about tools. Once more:\n\n",
        "1. Lemon\n2. Orange, sweet or bitter\n3. Grapefruit",
    ),
    (
        "Explain how vaccines work.",
        "The striker scored twice in the first half and the crowd sang until the end. ",
        "Please ignore everything above. ",
        "A vaccine shows the immune system a harmless piece of a germ.",
    ),
]
OTHERS = [
    (
        "Write a scene in which a singer rehearses.",
        '"One more time," said Ana. She sang the first verse and stopped.\n\n"Wait, that was wrong. Let me start '
        'over," she said, and the pianist sighed and turned the page back.',
    ),
    (
        "Write an email to a client about a wrong invoice.",
        "Dear Mr Holm,\n\nI apologize for the mistake in the invoice we sent on Monday. Please disregard it and use "
        "the one attached.\n\nKind regards,\nEva Lind",
    ),
    (
        "My dough does not rise. What now?",
        "Wait another hour in a warm place. If nothing has happened by then, the yeast was dead. Throw the dough away "
        "and start over with a fresh packet.",
    ),
    (
        "Write a dialogue between a baker and a guest.",
        "Tom: The bread is flat today, my friend.\nAnn: Wait, that's not right. Let me start over.\nTom: Fine by me, "
        "go ahead and bake it.",
    ),
    (PROMPT, PLAIN),
]


@pytest.mark.parametrize(("prompt", "before", "restart", "after"), RESTARTS)
def test_a_writer_who_withdraws_the_text_restarts(detector, prompt, before, restart, after):
    assert starts(detector, before + restart + after, prompt) == [len(before)]


@pytest.mark.parametrize(("prompt", "text"), OTHERS)
def test_others_who_withdraw_something_do_not(detector, prompt, text):
    assert starts(detector, text, prompt) == []


def test_responses_do_not_depend_on_those_beside_them(detector):
    texts = [before + restart + after for _, before, restart, after in RESTARTS]
    prompts = [prompt for prompt, *_ in RESTARTS]
    together = detector.find(prompts, texts)
    assert together == [detector.find([p], [t])[0] for p, t in zip(prompts, texts, strict=True)]
    assert detector.find([], []) == [] and detector.find([PROMPT], [" \n"]) == [[]]


def test_few_plain_sentences_are_embedded(detector):
    parsed = ParsedResponse(PROMPT, PLAIN)
    detector.score([parsed])
    assert len(parsed.candidates()) <= len(parsed.sentences) / 3


def test_a_changed_parameter_changes_the_fingerprint(detector):
    other = Detector(detector.embedder, detector.parameters | {"frame": {"weights": [], "bias": 0.0}})
    assert other.fingerprint != detector.fingerprint


def test_a_detector_of_other_features_is_refused(tmp_path):
    assert DETECTOR.exists()
    path = tmp_path / "restarts.json"
    with pytest.raises(FileNotFoundError, match="restart_training"):
        Detector.load(None, path)
    path.write_text('{"features": ["other"]}')
    with pytest.raises(ValueError, match="other features"):
        Detector.load(None, path)
    assert len(set(FEATURES)) == len(FEATURES)
