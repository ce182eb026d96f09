"""Alignment of tokens with the characters of their text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

# A full stop after a word of two letters or more ("1." opens an item of a list), closing marks, spaces.
SENTENCE_END = re.compile(r"[^\W\d_]{2}[)\"'”’]*[.!?…]+[\"'”’)*]*\s*\Z")
LONGEST_END = 40  # characters that are searched for the end of a sentence


@dataclass(frozen=True)
class Alignment:
    """text: the decoded tokens, without special tokens. starts: first character of each token, then the text's length.

    Tokens that spell one character together (a split emoji) start at that character. A special token starts where the
    next token does.
    """

    text: str
    starts: tuple[int, ...]

    def slice(self, first: int, last: int) -> str:
        """Text of the tokens from `first` up to, without, `last`."""
        return self.text[self.starts[first] : self.starts[last]]

    def splits_character(self, count: int) -> bool:
        """Whether the first `count` tokens end inside a character."""
        return 0 < count < len(self.starts) - 1 and self.starts[count] == self.starts[count - 1]


def align(tokens: Sequence[int], tokenizer) -> Alignment:
    """Alignment of `tokens`. A token starts where the text of its predecessors ceases to match the whole text."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    before = (tokenizer.decode(tokens[:i], skip_special_tokens=True) for i in range(len(tokens)))
    return Alignment(text, (*(len(os.path.commonprefix([part, text])) for part in before), len(text)))


def sentence_ends(alignment: Alignment) -> list[int]:
    """Numbers of tokens, ascending, after which a sentence of the text ends, before white space and behind it."""
    found = []
    for count in range(1, len(alignment.starts)):
        end = alignment.starts[count]
        before, rest = alignment.text[max(0, end - LONGEST_END) : end], alignment.text[end:]
        whole_word = before[-1:].isspace() or not rest or rest[0].isspace()
        if whole_word and not alignment.splits_character(count) and SENTENCE_END.search(before):
            found.append(count)
    return found


def ends_inside_character(tokens: Sequence[int], tokenizer) -> bool:
    """Whether the tokens end inside a character, as in the middle of an emoji."""
    return tokenizer.decode(tokens, skip_special_tokens=True).endswith("\ufffd")  # which half of one is decoded to


def whole_characters(tokens: Sequence[int], count: int, tokenizer) -> int | None:
    """The smallest number of tokens from `count` on that ends with a character; None where the tokens hold none."""
    ends = (n for n in range(count, len(tokens) + 1) if not ends_inside_character(tokens[:n], tokenizer))
    return next(ends, None)
