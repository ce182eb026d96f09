"""Words, stems, word classes and sentences of English text."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from jaxtyping import Int

# Closed word classes of English; other words are classed by ending. Coherent text has frequent class pairs.
CLASSES = {
    "article": "the a an this that these those every each some any no another",
    "pronoun": "i you he she it we they me him her us them who what which itself themselves yourself",
    "possessive": "my your his its our their whose",
    "preposition": "of in on at by for with from into onto over under about through between against during without"
    " after before around near across along as like within upon until towards than",
    "to": "to",
    "conjunction": "and or but nor so yet",
    "subordinator": "if when while because although though since unless where whether how why once",
    "be": "is are was were be been being am 's 're",
    "auxiliary": "have has had do does did having doing",
    "modal": "can could will would shall should may might must cannot",
    "negation": "not never n't",
    "adverb": "very also too just only even still more most much many well then there here now often always sometimes",
}
WORD_CLASS = {word: name for name, words in CLASSES.items() for word in words.split()}
ENDINGS = ("ly", "ing", "ed", "tion", "s", "er", "al")
CLASS_NAMES = [*CLASSES, *ENDINGS, "word", "name", "number", ".", ",", "mark", "break"]
CLASS_INDEX = {name: i for i, name in enumerate(CLASS_NAMES)}
TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d[\d.,]*|\n+|[^\w\s]|_+")
PIECE = re.compile(r"[^.!?\n]*(?:[.!?]+(?=\s|$)|\n|$|[.!?])+", re.S)
MIN_WORDS, MAX_WORDS = 20, 60  # words per piece: sentences are joined or cut to lengths that carry meaning
WORD = re.compile(r"\w+(?:['’]\w+)*")
MARKDOWN = re.compile(r"[*_`#~|]+")
BLOCK = re.compile(r"\S+")
BULLET = re.compile(r"^\s*(?:>\s*)*(?:[-+•*]\s+|\d+[.)]\s+)?")
ECHO = 5  # words in a row that only a copy of the prompt shares with it
FRAMES = """
    explain how write short story about list interesting facts describe tell please give someone something walk
    through step steps instruction instructions simple first time best way people person things thing make do
    get use need want like know understand learn would should could beginner child friend letter poem dialogue
    report news between matter important example practical advice common mistakes compare similar typical day
    involves answers questions
"""  # words of a request's form, not of its subject
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # as Unicode names letters
FRAME = frozenset(FRAMES.split())


def words_of(text: str) -> list[str]:
    return [w.lower() for w in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text)]


def unspaced_share(text: str) -> float:
    """Share of the letters of `text` in scripts without spaces between words, which `words_of` cannot split."""
    letters = [unicodedata.name(letter, "") for letter in text if letter.isalpha()]
    return sum(name.startswith(UNSPACED) for name in letters) / max(1, len(letters))


def stem(word: str) -> str:
    """A crude stem, equal for bake, bakes, baking and baked."""
    return re.sub(r"(?:'s|ies|ied|ing|ed|es|s|y|e)$", "", word) if len(word) > 3 else word


def content_stems(text: str) -> list[str]:
    return [stem(w) for w in words_of(text) if w not in WORD_CLASS and w not in FRAME and len(w) > 2]


def plain(text: str) -> str:
    """`text` in lower case without Markdown's marks, bullets and repeated blanks: what is scored does not hang on form.

    Line breaks stay, as they end sentences in lists.
    """
    lines = (MARKDOWN.sub("", BULLET.sub("", line)) for line in text.lower().splitlines())
    return "\n".join(kept for line in lines if (kept := " ".join(line.split())))


def without_echo(text: str, prompt: str) -> str:
    """`text` without the runs of `ECHO` words or more (or the whole of a shorter prompt) that it copies from `prompt`.

    Case and punctuation do not matter. Linear in the words of `text`.
    """
    wanted = [w.lower() for w in WORD.findall(prompt)]
    size = min(ECHO, len(wanted))
    runs = {tuple(wanted[i : i + size]) for i in range(len(wanted) - size + 1)} if size > 1 else set()
    found = list(WORD.finditer(text))
    words = [m[0].lower() for m in found]
    copied = [False] * len(found)
    for i in range(len(found) - size + 1):
        if tuple(words[i : i + size]) in runs:
            copied[i : i + size] = [True] * size
    kept, end = [], 0
    for match, is_copied in zip(found, copied, strict=True):
        if is_copied:
            kept.append(text[end : match.start()])
            end = match.end()
    return "".join([*kept, text[end:]])


def piece_spans(text: str) -> list[tuple[int, int]]:
    """Characters of the pieces of `text`: sentences in order; a short one takes in the next, long ones are cut.

    What follows the end of a piece has the same pieces as a text of its own.
    """
    spans: list[tuple[int, int]] = []
    n_words = 0  # of the last piece
    for sentence in PIECE.finditer(text):
        words = [word.span() for word in BLOCK.finditer(text, *sentence.span())]
        for at in range(0, len(words), MAX_WORDS):
            part = words[at : at + MAX_WORDS]
            if spans and (n_words < MIN_WORDS or (at and len(part) < MIN_WORDS)):
                spans[-1], n_words = (spans[-1][0], part[-1][1]), n_words + len(part)
            else:
                spans.append((part[0][0], part[-1][1]))
                n_words = len(part)
    return spans


def split_pieces(text: str) -> list[str]:
    """The pieces of `text` (`piece_spans`), with single blanks between words."""
    return [" ".join(text[start:end].split()) for start, end in piece_spans(text)]


def word_classes(text: str) -> Int[np.ndarray, " tokens"]:
    """Class index of each token."""
    names = []
    for token in TOKEN.findall(text):
        word = token.lower().replace("’", "'")
        if word in WORD_CLASS:
            names.append(WORD_CLASS[word])
        elif token[0].isalpha():
            ending = next((e for e in ENDINGS if word.endswith(e) and len(word) > len(e) + 2), "word")
            names.append("name" if token[0].isupper() and ending == "word" else ending)
        elif token[0].isdigit():
            names.append("number")
        else:
            names.append("." if token in ".!?" else "," if token in ",;:" else "break" if token[0] == "\n" else "mark")
    return np.array([CLASS_INDEX[name] for name in names], dtype=int)
