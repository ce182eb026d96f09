"""Labels, concreteness and the draw of latents on a made-up corpus whose subjects are known."""

import re

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from esr.models.chat import chat_tokens
from esr.sae.contexts import Contexts
from esr.sae.corpus import Corpus
from esr.sae.labels import contexts_of, label, quote, word_concreteness
from esr.sae.latents import draw_latents, prompt_activations
from esr.sae.on_policy import requests_and_responses
from esr.sae.quality import document_residuals
from esr.sae.words import read_words
from esr.storage.records import Prompt
from tests.models.chat_families import FAMILIES

SUBJECTS = {
    "bread": "the baker kneads dough and bread rises in the oven with yeast so bread and breads cool",
    "whales": "a whale swims in the ocean where whales dive and the whale sings to whales in the sea",
    "chess": "the rook takes a pawn and the king of chess falls because chess rewards a patient king",
    "trains": "a locomotive pulls the trains over rails and the train stops while rails cool in the rain",
    "votes": "the election gives a vote to all and voters count each vote until the election ends",
    "stars": "a telescope shows stars and the star burns while galaxies of stars drift in the night",
}
FORMS = ["Write a poem about {}.", "Explain {} to a child.", "List facts about {}."]
OPENING = "Emily finally says that it is crucial to begin: "


class Tokenizer:
    """Words, and the spaces before them, are tokens; ids below 5 are the chat template's."""

    added_tokens_decoder = {1: AddedToken("<bos>"), 2: AddedToken("<end>")}

    def __init__(self):
        self.texts = ["", "<bos>", "<end>", "user\n", "assistant\n"]

    def __len__(self):
        return len(self.texts)

    def batch_decode(self, rows):
        return ["".join(self.texts[i] for i in row) for row in rows]

    def ids(self, text):
        found = re.findall(r"<bos>|<end>|user\n|assistant\n| ?[^\W\d_]+| ?[^\w\s]|\s", text)
        self.texts += [t for t in dict.fromkeys(found) if t not in self.texts]
        return [self.texts.index(t) for t in found]

    def chat(self, text):
        return tuple(self.ids(f"<bos>user\n{text}<end>assistant\n"))


class Embedder:
    """Subjects are alike if they are the same word: one axis each."""

    def encode(self, texts):
        return np.eye(len(texts), dtype=np.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def corpus(tokenizer):
    tokens, starts, responses = [], [], []
    for form in FORMS:
        for subject, text in SUBJECTS.items():
            request = tokenizer.ids(f"user\n{form.format(subject)}<end>assistant\n")
            starts.append(len(tokens))
            responses.append(len(request))
            tokens += request + tokenizer.ids(OPENING + text + ".")
    return Corpus(
        torch.tensor(tokens), torch.tensor(starts), torch.tensor(responses), 1, torch.empty(0, 0), torch.empty(0)
    )


@pytest.fixture(scope="module")
def words(corpus, tokenizer):
    import esr.sae.words

    patch = pytest.MonkeyPatch()
    patch.setattr(esr.sae.words, "FRAME", 0.2)  # six subjects make "bread" a sixth of all requests
    yield read_words(corpus, tokenizer)
    patch.undo()


@pytest.fixture(scope="module")
def concrete(words):
    return word_concreteness(words, Embedder())


def contexts(corpus, tokenizer, word, activation=10.0):
    """The first place of `word` in each document that has it."""
    ids = {i for i, text in enumerate(tokenizer.texts) if text.strip() == word}
    found = []
    for d in range(len(corpus.starts)):
        at = [p for p, t in enumerate(corpus.document(d)) if t in ids and p >= int(corpus.responses[d])]
        found += [(activation, d, at[0])] if at else []
    return found


def test_words_leave_the_template_out_and_know_their_documents(words, corpus):
    assert "assistant" not in words.spelling and "user" not in words.spelling and "end" not in words.spelling
    first = [words.spelling[w] for w in words.word_of[words.document_of == 0]]
    assert first[:6] == ["Write", "a", "poem", "about", "bread", "Emily"]
    last = int(corpus.starts[1]) - 1
    assert words.pieces[last] == "." and words.word_of[words.at[last]] == words.word_of[words.document_of == 0][-1]
    assert words.at[int(corpus.starts[1])] == -1


def test_a_request_ends_at_a_turn_token_that_is_not_named_a_special_one():
    tokenizer = FAMILIES["gemma"][0]()  # in the manner of Gemma 3
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end not in tokenizer.all_special_ids
    requests, responses = ["Explain bread.", "What is salt?"], ["Mix it", "Water and flour"]
    chats = [list(chat_tokens(tokenizer, request))[1:] for request in requests]
    texts = [[*tokenizer(response, add_special_tokens=False).input_ids, end] for response in responses]
    starts, prefix = [0, len(chats[0]) + len(texts[0])], len(tokenizer("<start_of_turn>user\n").input_ids) - 1
    tokens = torch.tensor([*chats[0], *texts[0], *chats[1], *texts[1]])
    lengths = torch.tensor([len(chat) for chat in chats])
    corpus = Corpus(tokens, torch.tensor(starts), lengths, prefix, torch.empty(0, 0), torch.empty(0))
    assert requests_and_responses(corpus, tokenizer, 2) == (requests, responses)
    found = read_words(corpus, tokenizer)
    written = "Explain bread Mix it What is salt Water and flour"
    assert " ".join(found.spelling[w] for w in found.word_of).lower() == written.lower()


def test_singular_and_plural_are_one_word(words):
    assert "whales" not in words.spelling or "whale" not in words.spelling
    assert "breads" not in words.spelling and "vote" in words.spelling
    assert "rails" in words.spelling  # its singular is never used


def test_subjects_are_requests_without_the_words_of_form(words):
    assert words.subjects[:2] == ["bread", "whale"] or words.subjects[:2] == ["bread", "whales"]
    assert len(set(words.subjects)) == len(SUBJECTS)


def test_a_window_ends_at_the_token_and_stays_in_its_document(words, corpus):
    position = int(corpus.responses[3]) + 1
    assert [words.spelling[w] for w in words.window(3, position)][-2:] == ["Emily", "finally"]
    assert len(words.window(3, 0)) == 0
    assert len(words.window(3, len(corpus.document(3)) - 1)) == 16


def test_words_of_a_subject_are_concrete_and_others_are_not(words, concrete):
    value = {word: concrete[words.spelling.index(word)] for word in ("rook", "vote", "crucial", "Emily", "the", "a")}
    assert value["rook"] > 0.9 and value["vote"] > 0.9
    assert max(value[w] for w in ("crucial", "Emily", "the", "a")) < 0.1


def test_a_label_names_what_sets_the_contexts_apart(words, concrete, corpus, tokenizer):
    found = label(words, concrete, contexts(corpus, tokenizer, "rises"))
    assert found.text.split(", ")[0] in {"bread", "dough", "baker", "rises", "kneads"}
    assert set(found.words) <= {"bread", "dough", "baker", "rises", "kneads"}
    assert found.concreteness > 0.9
    assert 1 <= len(found.text.split(", ")) <= 3


def test_contexts_on_a_word_of_argument_are_not_concrete(words, concrete, corpus, tokenizer):
    found = label(words, concrete, contexts(corpus, tokenizer, "crucial"))
    assert found.concreteness < 0.1


def test_contexts_with_nothing_in_common_have_no_label(words, concrete, corpus):
    found = label(words, concrete, [(1.0, d, int(corpus.responses[d])) for d in range(6)])
    assert found.text == "" and found.concreteness == 0


def test_a_label_does_not_repeat_variants():
    from esr.sae.labels import _without_variants

    assert _without_variants(["electricity", "electric", "wire", "wires", "bake"]) == ["electricity", "wire", "bake"]


def test_a_quote_marks_the_firing_token(words, corpus, tokenizer):
    context = contexts(corpus, tokenizer, "rook")[0]
    assert "the «rook» takes" in quote(words, context)
    assert quote(words, (1.0, 0, 0)).startswith("«")


@pytest.fixture(scope="module")
def fired(corpus, tokenizer):
    """Latents: 0 rook, 1 crucial, 2 rises, too dense, 3 locomotive, on a prompt, 4 rare, 5 dead, 6 telescope."""
    rows = [
        contexts(corpus, tokenizer, w) for w in ("rook", "crucial", "rises", "locomotive", "pulls", "", "telescope")
    ]
    activation, place = torch.zeros(7, 20), torch.zeros(2, 7, 20, dtype=torch.long)
    for j, row in enumerate(rows):
        for i, (a, d, p) in enumerate(row):
            activation[j, i], place[0, j, i], place[1, j, i] = a, d, p
    density = torch.tensor([0.01, 0.01, 0.5, 0.01, 1e-7, 0.0, 0.01])
    return Contexts(activation, place[0], place[1], density, 100.0, 1000)


PROMPT_ACTIVATION = np.array([0, 0, 0, 4.0, 0, 0, 0], dtype=np.float32)
BOUNDS = {"seed": 3, "min_concreteness": 0.5, "min_density": 1e-5, "max_density": 0.1}


def draw(fired, words, concrete, n, **changes):
    return draw_latents(fired, words, concrete, PROMPT_ACTIVATION, n=n, **BOUNDS | changes)


def test_each_drawn_latent_has_its_reason(fired, words, concrete):
    with pytest.raises(ValueError, match="3 latents are .*, but only 2 of 7 pass"):
        draw(fired, words, concrete, 3)
    drawn = {x.index: x for x in draw(fired, words, concrete, 2)}
    expected = {
        0: "kept", 1: "label not concrete", 2: "too dense", 3: "fires on a prompt",
        4: "too rare", 5: "too rare", 6: "kept",
    }  # fmt: skip
    assert {i: x.reason for i, x in drawn.items()}.items() <= expected.items()
    assert all(x.kept == (x.reason == "kept") for x in drawn.values())
    assert sum(x.kept for x in drawn.values()) == 2
    assert "rook" in drawn[0].words and "«rook»" in drawn[0].contexts[0]


def test_the_draw_follows_the_seed_and_stops_when_enough_are_kept(fired, words, concrete):
    assert draw(fired, words, concrete, 2) == draw(fired, words, concrete, 2)
    orders = {tuple(x.index for x in draw(fired, words, concrete, 2, seed=s)) for s in range(5)}
    assert len(orders) > 1
    one = draw(fired, words, concrete, 1)
    assert one[-1].kept and sum(x.kept for x in one) == 1


def test_relevance_may_be_loosened_to_a_share_of_the_scale_of_the_latent(fired, words, concrete):
    reasons = {s: {x.index: x.reason for x in draw(fired, words, concrete, n, max_prompt_share=s)} for s, n in
               ((0.39, 2), (0.41, 3))}  # fmt: skip
    assert reasons[0.41][3] == "kept"  # 4 on a prompt, 10 in its contexts
    assert reasons[0.39].get(3, "fires on a prompt") == "fires on a prompt"


def test_contexts_at_template_tokens_are_dropped(fired, words, corpus):
    assert len(contexts_of(fired, words, 0)) == 3
    place = fired.position.clone()
    place[0, 0] = 0  # the template's first token
    assert len(contexts_of(Contexts(fired.activation, fired.document, place, fired.density, 1.0, 1), words, 0)) == 2


def test_prompt_activations_look_at_the_users_words_alone(tokenizer, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr("esr.models.chat.chat_tokens", Tokenizer.chat)
    prompts = [Prompt(id="a", text="Explain how to bake bread."), Prompt(id="b", text="How do whales dive?")]
    for prompt in prompts:
        tokenizer.ids(prompt.text)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=len(tokenizer) + 5, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()

    class Positive(torch.nn.Module):
        W_dec = torch.eye(16)

        def encode(self, x):
            return x.clamp(min=0)

    found = prompt_activations(model, tokenizer, Positive(), 0, prompts, batch_size=1)
    expected = torch.zeros(16)
    for prompt in prompts:
        turn = tokenizer.ids("user\n" + prompt.text)
        expected = torch.maximum(
            expected,
            document_residuals(model, 0, [turn], prefix=1, first=model.config.bos_token_id).clamp(min=0).amax(0),
        )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
