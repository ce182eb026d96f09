"""Tokens begin where the tokenizer's offsets say, also where several of them spell one character together."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from esr.models.alignment import align

PLAIN = (
    "Bread rises slowly in the warm kitchen. Wait, that's not right: the bread rises\n\nin the oven, at 220 degrees."
)
CHARACTERS = {
    "emoji": "🥖",
    "joined emoji": "👩\u200d🍳",
    "family": "👨\u200d👩\u200d👧",
    "skin tone": "👍🏽",
    "flag": "🇩🇪",
    "accented letter": "é",
    "letter and combining accent": "e\u0301",
    "ideograph": "海",
}


def tokenizer_of(n_merges):
    """A byte-level BPE tokenizer; without merges, each byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = AddedToken("<|end|>", special=True)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 1 + n_merges,
        initial_alphabet=alphabet,
        special_tokens=[end],
        show_progress=False,
    )
    tokenizer.train_from_iterator([PLAIN, *CHARACTERS.values()] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


BYTES, WORDS = tokenizer_of(0), tokenizer_of(60)


def starts_by_offsets(text, tokenizer):
    """Token ids of a text, and the character at which each begins as the tokenizer itself tells."""
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return encoded.input_ids, [start for start, _ in encoded.offset_mapping]


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "words"])
@pytest.mark.parametrize("text", [PLAIN, f"Brot {' und '.join(CHARACTERS.values())}!"], ids=["plain", "mixed"])
def test_tokens_begin_where_the_offsets_of_the_tokenizer_say(text, tokenizer):
    tokens, starts = starts_by_offsets(text, tokenizer)
    alignment = align(tokens, tokenizer)
    assert alignment.text == text and alignment.starts == (*starts, len(text))


def test_merges_make_words_of_bytes():
    assert len(WORDS(PLAIN).input_ids) < 0.6 * len(BYTES(PLAIN).input_ids) == 0.6 * len(PLAIN)


@pytest.mark.parametrize("spelt", CHARACTERS.values(), ids=CHARACTERS)
def test_tokens_that_spell_one_character_begin_at_it(spelt):
    """Of an emoji joined from several characters, the tokens of each."""
    text = f"ab {spelt} cd"
    tokens = BYTES(text).input_ids
    alignment = align(tokens, BYTES)
    assert alignment.starts == (*(i for i, character in enumerate(text) for _ in character.encode()), len(text))
    ends = {len(text[:i].encode()) for i in range(len(text) + 1)}  # counts of tokens that end with a character
    assert [alignment.splits_character(count) for count in range(len(tokens) + 1)] == [
        count not in ends for count in range(len(tokens) + 1)
    ]


@pytest.mark.parametrize("spelt", CHARACTERS.values(), ids=CHARACTERS)
def test_a_slice_holds_whole_characters(spelt):
    text = f"ab {spelt} cd"
    tokens = BYTES(text).input_ids
    alignment, n_tokens = align(tokens, BYTES), len(tokens)
    for count in range(n_tokens + 1):
        assert alignment.slice(0, count) + alignment.slice(count, n_tokens) == text
        assert "\ufffd" not in alignment.slice(0, count)
    first, last = len(b"ab "), len(f"ab {spelt}".encode())
    assert alignment.slice(first, last) == spelt


def test_special_tokens_take_no_characters():
    bread, end = WORDS("Bread").input_ids, WORDS.eos_token_id
    alignment = align([*bread, end, *bread, end], WORDS)
    n = len(bread)
    assert alignment.text == "BreadBread"
    assert alignment.starts[n] == alignment.starts[n + 1] == 5 and alignment.starts[-2:] == (10, 10)


def test_no_tokens_have_no_text():
    alignment = align([], WORDS)
    assert (alignment.text, alignment.starts) == ("", (0,))
    assert alignment.slice(0, 0) == "" and not alignment.splits_character(0)
