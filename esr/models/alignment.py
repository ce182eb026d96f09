"""Which characters of a text each token spells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Alignment:
    """`text` is what the tokens decode to, without special tokens. `starts[i]` is the character at which token `i`
    begins, and `starts[n_tokens]` is the length of the text.

    Tokens that spell one character together (a split emoji) all begin at that character, and a special token begins
    where the next one does.
    """

    text: str
    starts: tuple[int, ...]

    def slice(self, first: int, last: int) -> str:
        """Text of the tokens `first` to `last` (not included)."""
        return self.text[self.starts[first] : self.starts[last]]

    def splits_character(self, count: int) -> bool:
        """Whether the first `count` tokens end within a character."""
        return 0 < count < len(self.starts) - 1 and self.starts[count] == self.starts[count - 1]


def align(tokens: Sequence[int], tokenizer) -> Alignment:
    """A token begins at the end of what the text of the tokens before it shares with the whole text."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    before = (tokenizer.decode(tokens[:i], skip_special_tokens=True) for i in range(len(tokens)))
    return Alignment(text, (*(len(os.path.commonprefix([part, text])) for part in before), len(text)))
