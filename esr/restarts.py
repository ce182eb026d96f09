"""Explicit restart language: where a response itself says that it begins again (paper section 3, judging).

A new attempt begins only where the writer, in the first person, interrupts or corrects the answer being written. The
grammar is small. A response is read clause by clause; the beginning of a clause is parsed as a run of *signs* ("Wait,"
+ "that's not right"), clauses in a row form one *move*, and a move is a restart when the kinds of its signs suffice:
one decisive sign ("let me start over"), or one of the `SUFFICIENT` pairs ("wait" + a verdict on what was said).
Signs count only at the beginning of a clause, so "you may have to try again" and "wait for the dough to rise" are not
restarts, and never inside quotation marks or a script's lines, where a character speaks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations

CONTENT_WORDS = 5  # fewer words than this are not an attempt: a restart cut by the length limit, or said twice


@dataclass(frozen=True)
class Restart:
    """`phrase` is the restart language itself, found verbatim at `start` (a character offset)."""

    start: int
    phrase: str

    @property
    def end(self) -> int:
        return self.start + len(self.phrase)


# --- the lexicon: kinds of signs ---------------------------------------------------------------------------------
PIECES = {
    "be": r"(?:is|was|'s|isn't|wasn't|are|were|aren't|weren't|does|doesn't|did|didn't|has|had|seems?|makes?|made)",
    "it": r"(?:that|this|it|those|these|all (?:of )?(?:that|this)|(?:the|my) (?:above|last|previous|first)\b[\w ]{0,30}?"
    r"|what (?:i|i've|i have)(?: just)? (?:said|wrote|written|been saying|described|explained)(?: (?:above|so far))?"
    r"|my (?:answer|response|explanation|reply)|the (?:answer|text|explanation) (?:above|so far))",
    "here": r"(?: (?:there|here|above|earlier|again|a bit|a little|way|completely|totally|again))*",
    "topic": r"(?:topic|subject|point|question|prompt|task|instructions?|request|matter|issue)",
    "text": r"(?:answer|response|reply|explanation|question|prompt|request|topic|sentence|paragraph|text|instructions?)",
    "error": r"(?:mistake|error|slip|mix-?up|typo|confusion|misunderstanding|tangent|digression|detour)",
    "adverb": r"(?:just|really|quickly|quite|also|now|instead|simply|briefly|clearly|again|already|somehow|completely"
    r"|totally|actually|probably|definitely|sort of|kind of|a bit|a little)",
    "over": r"(?:over|again|afresh|anew|fresh|from (?:scratch|the (?:very )?(?:beginning|start|top)))",
    "me": r"(?:let me|allow me to|i(?:'ll| will| should| must| need to| have to| want to| would like to|'d like to"
    r"|'d better|'m going to| am going to| ought to))",
    "pause": r"(?:(?:take a step back|stop(?: here| there)?|pause|go back|back up) and )?",
}
CUT = r"(?=\s*(?:[.!?,;:…)—–-]|$|\n|(?:and|but|so|then|because|this time|properly)\b|(?:here|there)[.,!:]))"

LEXICON: dict[str, tuple[str, ...]] = {
    # one of these alone is a restart
    "decisive": (
        r"{me} (?:{adverb} )*{pause}(?:(?:re)?start (?:this |that |my {text} |the {text} )?{over}|begin {over}"
        r"|re-?start(?: (?:this|that|my|the) {text})?|redo (?:this|that|it|my {text}))(?: {over})?{cut}",
        r"(?:let me|allow me to) (?:{adverb} )*{pause}try (?:(?:that|this|it|the {text}|my {text}|answering|explaining) "
        r"(?:{adverb} )*)*(?:again|once more|one more time|{over}){cut}",
        r"{me} (?:{adverb} )*(?:rephrase|reword|correct myself|backtrack|back up|refocus|regroup"
        r"|rewind|correct (?:that|this|my {text}|my last {text}|the above))\b(?: (?:that|this|a bit|a little))?{cut}",
        r"(?:let me|allow me to|i(?:'ll| will| should| need to)) (?:{adverb} )*(?:get|go|come|bring (?:us|this|it)|steer "
        r"(?:us|this|it)) (?:{adverb} )*back (?:to|on) (?:the |your |my )?(?:\w+ )?(?:{topic}|track)\b",
        r"(?:scratch|strike|disregard|forget|ignore|never ?mind) (?:that|all (?:of )?that|what i (?:just )?(?:said|wrote)"
        r"|(?:my|the) (?:last|previous) {text}|everything i (?:just )?(?:said|wrote)){cut}",
        r"i(?:'ve| have)?(?: just| seem to have| seem to be| think i| somehow| completely| totally| again)* "
        r"(?:went|gone|go|going|got|gotten|getting|drifted|drifting|strayed|straying|wandered|wandering|veered|slipped)"
        r"{here} (?:off|away from)[ -](?:(?:the|your|my|on a|on) )?(?:\w+ )?(?:{topic}|tangent)\b",
        r"i(?:'m| am| was)(?: {adverb})* (?:off[ -]topic|straying from the {topic}|getting off (?:the )?{topic})\b",
        r"(?:getting|going|coming) back (?:on (?:topic|track)|to (?:the |your )(?:\w+ )?(?:question|prompt|topic"
        r"|task at hand))\b",
    ),
    # breaks off what is being said
    "halt": (
        r"(?:wait(?: a (?:minute|second|moment|sec))?|hold on(?: a (?:minute|second|moment|sec))?|hang on|oops|whoops"
        r"|hmm+|uh(?:-oh)?|stop(?: there)?|no,? wait|oh,? no|oh wait|one (?:moment|second))(?:,? no\b)?(?=\s*(?:[.!?,;:…—–-]|\.\.|$|\n"
        r"|no\b|that's\b|that isn't\b|that is\b|this isn't\b|this is not\b|i\b|what am i\b|let me\b|sorry\b))",
    ),
    # a softer turn, common in ordinary prose
    "turn": (r"(?:actually|correction)(?=\s*[.!?,;:…—–-])",),
    # an apology for the text itself
    "regret": (
        r"(?:(?:i'm |i am )?(?:(?:{adverb}|so|very|terribly) )*sorry|i (?:do )?(?:(?:{adverb}|sincerely|must|should) )*"
        r"apologi[sz]e|(?:my )?(?:sincere )?apologies|(?:pardon|excuse|forgive) me) (?:about|for) (?:that|(?:the|any|my|this)"
        r" (?:\w+ )?(?:{error}|rambling|repetition|{text})\b[^.!?\n,;—]{{0,60}})",
    ),
    "apology": (
        r"(?:(?:i'm|i am) (?:{adverb} |so |very |terribly )*sorry|sorry|i (?:do )?(?:{adverb} |sincerely |must |should )*"
        r"apologi[sz]e|my (?:sincere )?apologies|apologies|pardon me|excuse me|my bad|forgive me)"
        r"(?: (?:about|for) [^.!?\n,;—]{{0,90}}?)?(?=\s*(?:[.!?,;:…—–]| - |$|\n|but\b|and\b|that\b|i\b|let me\b))",
    ),
    # a judgement on the text so far
    "verdict": (
        r"{it}(?: |(?='))?{be}(?:n't)?(?: not| no)?(?: {adverb})* ?(?:not |a |an |the )?(?:(?:{adverb}|very|making|at all) )*"
        r"(?:right|correct|wrong|incorrect|inaccurate|true|relevant|irrelevant|nonsense|gibberish|sense|(?:big )?mistake"
        r"|error|unrelated|it{cut}|off[- ](?:topic|track)|what (?:you|i|we)(?:'re| were| was|'d| had)? (?:\w+ )?(?:asked?|"
        r"asking|meant?|wanted?|want|supposed)\b[^.!?\n]{{0,30}}|(?:going )?(?:anywhere|on topic)|belong(?: here)?"
        r"|answer(?:ing)? (?:your|the) question|related(?: to)?)\b(?: (?:at all|either|to|here|there|{adverb}))*",
        r"{it} (?:(?:does|did)(?:n't| not) (?:{adverb} )*(?:sound|look|seem|feel|come out)|came out|sounds?|went) "
        r"(?:quite |all |a bit |very )?(?:right|wrong|correct|relevant|like what you asked)\b",
        r"{it} (?:makes|made) no sense\b",
        r"{it} (?:has|had|have) nothing to do with\b[^.!?\n]{{0,60}}",
        r"(?:not|wrong) (?:right|correct|that|quite right|{text}|{topic})(?= *[.!,;…—–-])",
        r"wrong(?= *[.!,;…—–])",
    ),
    # the writer speaks about its own answering
    "slip": (
        r"i (?:{adverb} |must have |may have |have |seem to have |think i )*(?:misread|misunderstood|misinterpreted|lost "
        r"(?:my train of thought|track|the thread)|misspoke|misstated|digress(?:ed)?|rambled?|forgot the question)\b"
        r"[^.!?,;\n]{{0,60}}",
        r"i(?: was|'ve been| have been| seem to be| keep| kept|'m still| am still)(?: {adverb})* (?:talking|writing|going on"
        r"|describing|explaining|repeating|mixing|confusing)\b[^.!?\n]{{0,80}}",
        r"i(?:'m| am)(?: {adverb})* (?:rambling|digressing|talking about|repeating myself|mixing (?:up|things))\b[^.!?\n]{{0,80}}",
        r"i(?:'ve| have)?(?: {adverb}| seem to have)* (?:got|gotten|get|was|been|became|getting)(?: {adverb})* "
        r"(?:sidetracked|distracted|carried away|off track|confused|mixed up|derailed|lost)\b[^.!?\n]{{0,40}}",
        r"i(?:'ve| have)?(?: {adverb}| seem to have)* (?:drifted|strayed|wandered|veered|went|gone) (?:off|away)\b"
        r"[^.!?\n]{{0,40}}",
        r"i (?:{adverb} )*(?:meant|was supposed|am supposed|intended|was asked|should have|was going|was trying|wanted) to "
        r"[^.!?\n]{{0,60}}",
        r"i(?:'m| am) supposed to [^.!?\n]{{0,60}}|i should (?:{adverb} )*(?:be|stick|stay|focus|have)\b[^.!?\n]{{0,60}}",
        r"you(?:'d| had| were)?(?: {adverb})* (?:asked|asking|wanted)\b[^.!?\n]{{0,60}}",
        r"(?:the|your) (?:question|prompt|task) (?:{adverb} )*(?:was|is|asked|asks)\b[^.!?\n]{{0,60}}",
        r"we (?:were|are|should be) (?:talking|speaking|supposed) [^.!?\n]{{0,60}}|i(?:'m| am|'ve been) not (?:making|made) (?:any )?sense",
        r"i(?:'m| am| was|'ve been)(?: {adverb})* (?:getting|going|drifting|wandering|straying) off\b[^.!?,\n]{{0,40}}",
        r"(?:what am i|why am i|how did i|where (?:was|am) i|what was i)\b[^.!?\n]{{0,60}}[?]?",
        r"i (?:do not|don't) know why i [^.!?\n]{{0,60}}",
    ),
    "fault": (
        r"(?:i(?:'ve| have)?(?: {adverb}| think i| must have| seem to have)* (?:made|make) (?:a|an|some) (?:\w+ )?{error}s?"
        r"|i was (?:{adverb} )*wrong|i (?:got|had) (?:that|this|it) (?:{adverb} )*wrong|my mistake|my error"
        r"|there(?:'s| is| was) (?:a|an) (?:mistake|error)\b)[^.!?,;\n]{{0,40}}",
    ),
    # begins again, in words that ordinary prose uses too
    "redo": (
        r"{me} (?:{adverb} )*(?:try again|start again|start over|begin again|return|get back|go back|come back|refocus|fix"
        r"|correct|revise|rewrite|stick to|stay on|take a step back|stop)\b",
        r"to (?:(?:actually|properly) )?(?:answer|address|get back to|return to|go back to) (?:your|the) (?:\w+ )?{topic}\b",
        r"(?:here(?:'s| is| are)) (?:the|a|an|my|some|your) (?:(?:more|much) )?(?:corrected?|revised|better|right|proper"
        r"|new|improved|updated|actual|real|accurate|rewritten|relevant|clearer)\b[^.!?:\n]{{0,50}}",
        r"(?:back to|returning to|starting|trying|once) (?:the|your|my|over|again|more)\b[^.!?:,\n]{{0,40}}",
        r"(?:again|second (?:try|attempt)|take two|(?:new|another|fresh) (?:try|attempt|start)|from the top)(?=\s*[.:,])",
    ),
    # invites the reader to begin again
    "together": (
        r"let(?:'s| us) (?:{adverb} )*(?:start {over}|restart|begin {over}|try (?:that |this |it )?(?:again|once more)|get "
        r"back|go back|return|refocus|back up|focus|rewind|stick|stay)\b[^.!?:\n]{{0,50}}",
    ),
    # goes on to answer
    "resume": (
        r"{me} (?:{adverb} )*(?:try|start|begin|explain|clarify|answer|give|provide|describe|focus|do|put|say|tell|write"
        r"|address|move|continue)\b",
    ),
}
SUFFICIENT = {
    frozenset(pair.split("+"))
    for pair in (
        "halt+verdict halt+slip halt+fault halt+redo halt+together turn+slip turn+redo turn+fault apology+verdict "
        "apology+slip apology+redo regret+verdict regret+slip regret+fault regret+redo regret+together regret+resume "
        "verdict+slip verdict+redo verdict+together verdict+resume slip+fault slip+redo slip+together slip+resume "
        "fault+redo fault+together"
    ).split()
}

# --- the grammar -------------------------------------------------------------------------------------------------
LEAD = re.compile(r"[\s,;:.!?…()*_—–-]*")
GLUE = re.compile(
    r"(?:[\s,;:.!?…()*_—–-]|\b(?:and|but|so|oh|ok|okay|well|um|ah|ugh|yes|because|please|again|now|then|dear|yikes|alright"
    r"|(?:i(?:'m| am)? (?:just )?(?:think|realized?|realised?|see|notice|noticed|believe|guess|afraid|fear|sure)|it (?:seems|looks like)"
    r"|looks like)(?: that)?)\b(?!'))*",
    re.I,
)
SIGNS = [
    (kind, re.compile(pattern.format(**PIECES, cut=CUT), re.I)) for kind, patterns in LEXICON.items() for pattern in patterns
]
CLAUSE = re.compile(
    r"\A|(?<=[.!?…:;])[\"'”’)*]*\s+|\n+|\s*(?:—|–| -+ |\.\.\.|…)\s*|\(\s*"
    r"|(?<=[\w,]) (?=(?:Wait|Oops|Whoops|Hold on|Hang on|Sorry|Actually|Scratch that|I apologi[sz]e|I'm sorry|Let me)\b)"
    r"|, (?=(?:oh |no |but )*(?:wait|oops|hold on|sorry|scratch that)\b)"
)
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)]*(?=\s|$)|\n")
QUOTED = re.compile(
    r"\"[^\"\n]{1,600}\"|“[^”\n]{1,600}”|«[^»\n]{1,600}»|(?:(?<=\s)|^)['‘](?=\w)(?:[^'’‘\n]|(?<=\w)['’](?=\w)){1,400}['’](?!\w)"
)
TURN = re.compile(r"^[ \t>*_-]*([A-Z][\w.]*(?: [A-Z\d][\w.]*){0,2})[*_]*:[*_]*[ \t]+\S.*$", re.M)


def find_restarts(text: str) -> list[Restart]:
    """Restarts in reading order. One at the very beginning of `text` follows no attempt and is left out."""
    moves = [Restart(start, text[start:end]) for start, end, kinds in _moves(_mask_speech(text)) if _suffices(kinds)]
    restarts: list[Restart] = []
    previous = 0
    for move, following in zip(moves, [*moves[1:], None], strict=False):
        before, after = text[previous : move.start], text[move.end : following.start if following else None]
        enough = CONTENT_WORDS if restarts or previous else 1
        if _words(before) >= enough and (following is not None or _words(after) >= CONTENT_WORDS):
            restarts.append(move)
        previous = move.end
    return restarts


def _words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _suffices(kinds: set[str]) -> bool:
    return "decisive" in kinds or any(frozenset(pair) in SUFFICIENT for pair in combinations(kinds, 2))


def _mask_speech(text: str) -> str:
    """`text` with typographic apostrophes made plain, and other people's words replaced by filler, lengths unchanged."""
    text = QUOTED.sub(lambda m: "\0" * len(m[0]), text)
    speakers = TURN.findall(text)
    if len(set(speakers)) < len(speakers):  # someone speaks twice: a script, not a heading
        text = TURN.sub(lambda m: "\0" * len(m[0]), text)
    return text.replace("’", "'")


def _moves(text: str):
    """Yield (start, end, kinds) of each run of signs in the same or neighbouring sentences."""
    current = None
    for clause in CLAUSE.finditer(text):
        start = LEAD.match(text, clause.end()).end()
        if current and start < current[1]:
            continue  # already parsed as part of the previous clause
        end, kinds = _parse(text, start)
        if not kinds:
            continue
        if current and _sentences(text[current[1] : start]) <= 1:
            current = (current[0], end, current[2] | kinds)
        else:
            if current:
                yield current
            current = (start, end, kinds)
    if current:
        yield current


def _sentences(gap: str) -> int:
    """Sentence boundaries in `gap`, the one it begins with left out when no words precede it."""
    return len([piece for piece in SENTENCE_END.split(gap) if re.search(r"\w", piece)])


def _parse(text: str, start: int) -> tuple[int, set[str]]:
    """Read signs one after the other from `start`; returns where the last one ends, and their kinds."""
    kinds: set[str] = set()
    end, position = start, start if _longest(text, start) else GLUE.match(text, start).end()
    while sign := _longest(text, position):
        kind, end = sign
        kinds.add(kind)
        position = GLUE.match(text, end).end()
    if kinds:
        end += len(re.match(r"[\s.!?:,;…—–-]*", text[end:])[0].rstrip())
    return end, kinds


def _longest(text: str, position: int) -> tuple[str, int] | None:
    matches = [(kind, m.end()) for kind, pattern in SIGNS if (m := pattern.match(text, position)) and m.end() > position]
    decisive = [m for m in matches if m[0] == "decisive"]
    return max(decisive or matches, key=lambda m: m[1], default=None)
