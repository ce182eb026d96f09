r"""Explicit restart language: where a response itself says that it starts again (paper section 3, judging).

A new attempt starts only where the writer, in the first person, interrupts or corrects the response. The start of each
clause is parsed as a run of *signs* ("Wait," + "that's not right"). Signs in the same or the next sentence form one
*move*. A move is a restart when the kinds of its signs suffice: one decisive sign ("let me start over") or one of the
`SUFFICIENT` pairs ("wait" + a verdict on the text). Signs count only at the start of a clause: "you may have to try
again" and "wait for the dough to rise" are no restarts. They never count inside quotations or lines of a script.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations

MAX_WAIT_SHARE = 0.06  # share of words above which "wait" is a tic; chosen from 0.04 to 0.08 on the part `develop`
CONTENT_WORDS = 5  # minimum words of an attempt; fewer are a restart cut by the length limit or repeated


@dataclass(frozen=True)
class Restart:
    """`phrase` is the restart language, verbatim, at character `start`."""

    start: int
    phrase: str

    @property
    def end(self) -> int:
        return self.start + len(self.phrase)


# Building blocks of the lexicon: <name> in a pattern stands for a block.
BLOCKS = {
    "adv": r"(?:(?:just|really|quickly|quite|also|now|instead|simply|briefly|clearly|again|already|somehow|completely"
    r"|totally|actually|probably|definitely|sort of|kind of|a bit|a little|all|very|so|must|do|sincerely|terribly) )*",
    "let": r"(?:let me|allow me to|i(?:'ll| will|'m going to| am going to))",
    "me": r"(?:<let>|i(?: should| must| need to| have to| want to| would like to|'d like to|'d better| ought to))",
    "have": r"i(?:'ve| have)?(?: (?:seem to|must|may|think i|again|just|somehow|completely|totally|really))*(?: have)?",
    "am": r"i(?:'m| am| was|'ve been| have been| seem to be| keep| kept|'m still| am still)",
    "over": r"(?:over|again|once more|one more time|afresh|anew|fresh"
    r"|from (?:scratch|the (?:very )?(?:beginning|start|top)))",
    "topic": r"(?:topic|subject|point|question|prompt|task|instructions?|request|matter|issue)",
    "text": r"(?:answer|response|reply|explanation|sentence|paragraph|text|message|<topic>)",
    "error": r"(?:mistake|error|slip|mix-?up|typo|confusion|misunderstanding|tangent|digression|detour)s?",
    "said": r"(?:the above|what i(?:'ve| have)?(?: just)? (?:said|wrote|written|been saying|described|explained)"
    r"|(?:my|the) (?:(?:last|previous|first|above) )?<text>(?: (?:above|so far))?)",
    "it": r"(?:that|this|it|those|these|all (?:of )?(?:that|this)|<said>)",
    "this": r"(?:that|this|it|the <text>|(?:my|this|that) <text>|answering|explaining)",
    "asked": r"(?:what|how) (?:(?:you|i|we)(?:'re| were| was|'d| had)? ?(?:\w+ )?"
    r"(?:asked?|asking|meant?|want(?:ed)?|supposed)|(?:the|your) <topic> (?:was|is|asks|asked))",
    "is": r"(?:'s| is| was| were| are| has been| had been)",
    "not": r"(?:<is> (?:<adv>)not|(?: is| was| were| are| did| does| do)n't| did not| does not)",
    "cut": r"(?=\s*(?:[.!?,;:…)—–-]|$|\n|(?:and|but|so|then|because|this time|properly)\b|(?:here|there)[.,!:]))",
    "stop": r"(?=\s*(?:[.!?,;:…—–-]|$|\n))",
    "rest": r"[^.!?\n—–]{0,60}",
    "aside": r"(?:(?:i|i'm|i've|i'd|you|you're|you've)\b(?!'| (?:can|could|should|will|may|might|need|have to|don't)\b)"
    r"|let me (?:look|think|see|check)\b"
    r"|what(?: (?:is|was|happened|am|are|did|do)\b[^.!?\n]{0,30})?[?!]"
    r"|(?:isn't|wasn't|weren't|aren't) (?:that|this|it|there)\b|<it><not>)",
    "wait": r"wait(?:(?:\.\.+|[,!…])? wait)*",
}
LEXICON: dict[str, tuple[str, ...]] = {
    "decisive": (  # one is a restart
        r"<me> <adv>(?:(?:take a step back|stop(?: here)?|pause|go back|back up) and )?"
        r"(?:try to )?(?:start|begin|do|try|answer|explain|say)(?: <this>)? <adv><over>(?: <over>)?"
        r"(?: from (?:here|there))?<cut>",
        r"<me> <adv>(?:re-?start|redo)(?: <this>)?(?: <over>)?<cut>",
        r"<me> <adv>(?:rephrase|reword|correct myself|backtrack|back up|refocus|regroup|rewind)"
        r"(?: (?:that|this|a bit|a little))?<cut>",
        r"<me> <adv>(?:correct|fix) (?:that|this|<said>)<cut>",
        r"<me> <adv>(?:go back and )?(?:answer|address|focus on) (?:your|the) (?:actual|original|real) <topic>\b",
        r"(?:i'm sorry|sorry|i apologi[sz]e|(?:my )?apologies) for "
        r"(?:going|getting|drifting|straying|wandering|veering) <rest>",
        r"<me> <adv>(?:get|go|come|bring (?:us|this|it)|steer (?:us|this|it)) <adv>back (?:to|on) "
        r"(?:the |your |my )?(?:\w+ )?(?:<topic>|track)\b",
        r"(?:to get|getting|going|coming) back (?:on (?:topic|track)|to (?:the|your) (?:\w+ )?"
        r"(?:question|topic|prompt))\b",
        r"(?:scratch|strike|disregard|forget|ignore|never ?mind) (?:(?:all )?that|<said>|everything i \w+)<cut>",
        r"<have> (?:went|gone|got|gotten|drifted|strayed|wandered|veered|slipped) <adv>"
        r"(?:off|away from)[ -](?:(?:the|your|my|on a|on) )?(?:\w+ )?(?:<topic>|tangent)\b",
        r"<am> <adv>(?:(?:going|getting|drifting|straying|wandering|veering) )?<adv>"
        r"(?:off|away from)[ -](?:(?:the|your|my|on a|on) )?(?:<topic>|tangent)\b",
    ),
    "interruption": (  # breaks off, then the writer addresses itself or the user: a restart unless "wait" loops
        r"(?:(?:oh,? |no,? )?<wait>|oops|hold on|hang on)(?: (?:a|one) (?:minute|second|moment|sec))?"
        r"[ ,.!?…—–-]+(?=<aside>)",
        r"wait(?:(?:\.\.+|[,!…])? wait)+<stop>",
    ),
    "halt": (  # breaks off the text
        r"(?:(?:oh,? |no,? |but )?<wait>|hold on|hang on)(?: (?:a|one) (?:minute|second|moment|sec))?(?:,? no)?<stop>",
        r"(?:oops|whoops|hmm+|uh(?:-oh)?|stop(?: there| right there)?|oh,? no)<stop>",
        r"(?:wait|oops|hold on)(?= (?:no|that's|that|this|i|what am i|let me|sorry)\b)",
    ),
    "turn": (r"(?:actually|correction)<stop>",),  # softer, common in prose
    "regret": (  # an apology for the text itself
        r"(?:(?:i'm |i am )?<adv>sorry|i <adv>apologi[sz]e|(?:my )?(?:sincere )?apologies|(?:pardon|excuse|forgive) me)"
        r" (?:about|for) (?:that|(?:the|any|my|this) (?:\w+ )?(?:<error>|rambling|repetition|<text>)\b"
        r"[^.!?\n,;—]{0,60})",
    ),
    "apology": (
        r"(?:(?:i'm |i am )?<adv>sorry|i <adv>apologi[sz]e|(?:my )?(?:sincere )?apologies|pardon me|excuse me"
        r"|my bad|forgive me)(?: (?:about|for) [^.!?\n,;—]{0,90}?)?"
        r"(?=\s*(?:[.!?,;:…—–]| - |$|\n|(?:but|and|that|i|let me)\b))",
    ),
    "verdict": (  # a judgement on the text so far
        r"<it><not> <adv>(?:right|correct|true|accurate|it<cut>|a good answer)\b",
        r"<it><is> <adv>(?:an? |the )?<adv>(?:wrong|incorrect|inaccurate|nonsense|gibberish|mistake|error)\b",
        r"<it><not> <adv>(?:make (?:any )?sense|belong|going anywhere)\b",
        r"<it><not> <adv>(?:sound|look|seem|feel|come out|go) <adv>(?:right|correct|relevant)\b",
        r"<it> <adv>(?:sounds|looks|seems|feels|came out|went) <adv>(?:wrong|off)\b",
        r"<it> (?:makes|made) no sense\b",
        r"(?:not (?:<adv>)(?:right|correct|that)|(?:not the |the )?wrong (?:<text>|word|one)?)(?= *[.!,;…—–-])",
    ),
    "slip": (  # the writer comments on its response
        r"<it><not> <adv><asked>\b[^.!?\n]{0,30}",
        r"<it><not> <adv>(?:relevant|on topic|related|answer(?:ing)? (?:your|the) <topic>)\b",
        r"<it><is> <adv>(?:an? |the )?<adv>(?:irrelevant|unrelated|off[- ](?:topic|track|point))\b",
        r"<it> (?:has|had|have) nothing to do with\b<rest>",
        r"<have> (?:misread|misunderstood|misinterpreted|lost (?:my train of thought|track|the thread)|misspoke"
        r"|misstated|digress(?:ed)?|rambled?|forgot the question)\b[^.!?,;\n]{0,60}",
        r"<am> <adv>(?:rambling|digressing|repeating myself|mixing (?:up|things)|talking about)\b<rest>",
        r"<am> <adv>(?:drifting|wandering|straying|veering)\b|i've been writing about\b<rest>",
        r"(?:<have> been|<am>) <adv>(?:talking|writing|describing|explaining|answering) (?:about )?the wrong\b<rest>",
        r"i(?: was|'ve been| have been| seem to be| keep| kept| started| start) <adv>"
        r"(?:talking|going on|describing|explaining|repeating|mixing|confusing)\b<rest>",
        r"(?:<have>|i was) <adv>(?:got|gotten|get|been|became|getting)? ?<adv>"
        r"(?:sidetracked|distracted|carried away|off track|confused|mixed up|derailed)\b[^.!?\n]{0,40}",
        r"<have> <adv>(?:drifted|strayed|wandered|veered|went|gone|got|gotten) <adv>(?:off|away)\b[^.!?\n]{0,40}",
        r"i (?:was |am )?<adv>(?:meant|mean|supposed|intended|asked|trying|wanted) to <rest>",
        r"i'm supposed to <rest>|i should (?:not )?<adv>(?:be|stick|stay|focus|have)\b<rest>",
        r"you(?:'d| had| were)? <adv>(?:asked|asking|wanted)\b<rest>",
        r"(?:your <topic> <adv>is|(?:the|your) <topic> <adv>(?:was|asked|asks))\b<rest>",
        r"we (?:were|are|should be) (?:talking|speaking|supposed) <rest>",
        r"i(?:'m| am|'ve been) not making (?:any )?sense",
        r"(?:(?:what|why|where) (?:am|was) i|how did i)\b[^.!?\n]{0,60}\?|what\?",
        r"i (?:do not|don't) (?:know|think) (?:why i (?:am|was|said|wrote|keep|started|went|got|mentioned)"
        r"|what happened|that's|that is|this is)\b<rest>",
    ),
    "fault": (
        r"<have> <adv>(?:made|make) (?:a|an|some) (?:\w+ )?<error>\b[^.!?,;\n]{0,40}",
        r"i was <adv>(?:wrong|mistaken|incorrect)\b[^.!?,;\n]{0,40}|i (?:got|had) (?:that|this|it) <adv>wrong\b",
        r"my (?:mistake|error)\b|there(?:'s| is| was) an? (?:mistake|error) (?:in|above)\b[^.!?,;\n]{0,40}",
    ),
    "redo": (  # starts again, in words common in prose
        r"<me> <adv>(?:(?:try|start|begin) <over>|return|get back|go back|come back|fix|correct|revise|rewrite|stick to"
        r"|stay on|take a step back|stop)\b",
        r"(?:let me|allow me to|i need to|i should) <adv>(?:explain|describe|answer|say|write|put|think|do|give|go)\b "
        r"(?:[^.!?\n]{0,40} )?(?:again|properly|correctly|the right way)<cut>",
        r"back to (?:\w+ ){0,2}\w+<cut>|(?:re)?starting <over>",
        r"to <adv>(?:answer|address|get back to|return to|go back to) (?:your|the) (?:\w+ )?<topic>\b",
        r"here(?:'s| is| are) (?:the|a|an|my|some|your) (?:(?:more|much) )?(?:corrected?|revised|better|right|proper"
        r"|new|improved|updated|actual|real|accurate|rewritten|relevant|clearer)\b[^.!?:\n]{0,50}",
        r"(?:back to|returning to|starting|trying|once) (?:the|your|my|over|again|more)\b[^.!?:,\n]{0,40}",
        r"(?:second (?:try|attempt)|take two|(?:new|another|fresh) (?:try|attempt|start)|from the top)(?=\s*[.:,])",
    ),
    "together": (  # may also invite the user
        r"let(?:'s| us) <adv>(?:(?:start|begin|try)(?: <this>)? <over>|restart|refocus|rewind|back up)\b<rest>",
        r"let(?:'s| us) <adv>(?:get back|go back|return|focus|stick|stay)\b[^.!?:\n]{0,50}",
    ),
    "resume": (  # continues with the response
        r"<me> <adv>(?:try|start|begin|explain|clarify|answer|give|provide|describe|focus|do|put|say|tell|write|address"
        r"|move|continue)\b",
    ),
}
SUFFICIENT = {  # kind -> the kinds that complete a restart in the same move
    "interruption": {"verdict", "slip", "fault", "redo", "together"},
    "halt": {"verdict", "slip", "fault", "redo", "together"},
    "turn": {"slip", "fault", "redo"},
    "apology": {"verdict", "slip", "fault", "redo"},
    "regret": {"verdict", "slip", "fault", "redo", "together", "resume"},
    "verdict": {"slip", "redo", "together"},
    "slip": {"fault", "redo", "together", "resume"},
    "fault": {"redo", "together"},
}


def _compile(pattern: str) -> re.Pattern:
    while blocks := set(re.findall(r"<(\w+)>", pattern)):
        for name in blocks:
            pattern = pattern.replace(f"<{name}>", BLOCKS[name])
    return re.compile(pattern, re.IGNORECASE)


SIGNS = [(kind, _compile(pattern)) for kind, patterns in LEXICON.items() for pattern in patterns]
MARKS = r"[\s,;:.!?…()*_—–-]"
LEAD = re.compile(f"{MARKS}*")
GLUE = re.compile(  # may stand before a sign or between two
    rf"(?:{MARKS}|\b(?:and|but|so|oh|ok|okay|well|um|ah|ugh|yikes|yes|because|please|again|now|then|dear|alright"
    r"|no|nope|whoa|anyway|anyhow|hey|right"
    r"|i(?:'m| am)?(?: just)? (?:think|reali[sz]ed?|see|notice[d]?|believe|guess|afraid|fear|sure)(?: that)?"
    r"|(?:it )?(?:seems|looks like)(?: that)?)\b(?!'))*",
    re.IGNORECASE,
)
OPENERS = "Wait|Oops|Whoops|Hold on|Hang on|Sorry|Actually|Scratch that|I apologi[sz]e|I'm sorry|Let me"
CLAUSE = re.compile(  # start of a clause: after a stop, a break or a dash, or where broken text lacks the stop
    r"\A|(?<=[.!?…;])[\"'”’)*]*\s+|\n+|\s*(?:—|–| -+ |\.\.\.|…)\s*|\(\s*"
    rf"|(?<=[\w,)]) (?=(?:{OPENERS})\b)"
    r"|(?<!think)(?<!say), (?=(?:oh |no |but )*(?:wait|oops|hold on|sorry|scratch that)\b)"
)
TRAIL = re.compile(r"[\s.!?:,;…—–-]*")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)]*(?=\s|$)|\n")
QUOTED = re.compile(
    r"(?<![\w.!?…,])\"(?=\S)[^\"\n]{1,600}(?<=\S)\"|“[^”\n]{1,600}”|«[^»\n]{1,600}»"
    r"|(?:(?<=\s)|^)['‘](?=\w)(?:[^'’‘\n]|(?<=\w)['’](?=\w)){1,400}['’](?!\w)"
)
STOPS = ".!?…\"'”’»"  # a sentence may end inside a quotation
TURN = re.compile(r"^[ \t>*_-]*([A-Z][\w.]*(?: [A-Z\d][\w.]*){0,2})[*_]*:[*_]*[ \t]+\S.*$", re.MULTILINE)


def find_restarts(text: str) -> list[Restart]:
    """Restarts in order, without one at the start of `text`, which follows no attempt."""
    alone = {"decisive"} if _loops(text) else {"decisive", "interruption"}
    moves = [
        Restart(start, text[start:end]) for start, end, kinds in _moves(_mask_speech(text)) if _suffices(kinds, alone)
    ]
    restarts: list[Restart] = []
    previous = 0
    for i, move in enumerate(moves):
        cut_off = i == len(moves) - 1 and _words(text[move.end :]) < CONTENT_WORDS
        if _words(text[previous : move.start]) >= CONTENT_WORDS and not cut_off:
            restarts.append(move)
        previous = move.end
    return restarts


def _loops(text: str) -> bool:
    """Whether "wait" is a tic and interrupts nothing; repeats in a row count once."""
    return len(re.findall(r"\bwait\b(?:\W+wait\b)*", text, re.IGNORECASE)) > MAX_WAIT_SHARE * _words(text)


def _words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _suffices(kinds: set[str], alone: set[str] | frozenset[str] = frozenset({"decisive"})) -> bool:
    pairs = combinations(kinds, 2)
    return bool(alone & kinds) or any(b in SUFFICIENT.get(a, ()) or a in SUFFICIENT.get(b, ()) for a, b in pairs)


def _mask_speech(text: str) -> str:
    """`text` with plain apostrophes, and quotations and scripts blanked; offsets are unchanged."""
    text = QUOTED.sub(lambda m: "\0" * len(m[0].rstrip(STOPS)) + m[0][len(m[0].rstrip(STOPS)) :], text)
    speakers = TURN.findall(text)
    if len(set(speakers)) < len(speakers):  # a speaker recurs: a script, not a heading
        text = TURN.sub(lambda m: "\0" * len(m[0]), text)
    return text.replace("’", "'")


def _moves(text: str):
    """Yield (start, end, kinds) of each move."""
    current = None
    for clause in CLAUSE.finditer(text):
        start = _skip(LEAD, text, clause.end())
        if current and start < current[1]:
            continue  # already parsed as part of the previous clause
        end, kinds = _parse(text, start)
        if not kinds:
            continue
        if current and _follows(text, current, start):
            start, kinds = current[0], current[2] | kinds
        elif current:
            yield current
        current = (start, end, kinds)
    if current:
        yield current


def _follows(text: str, move, start: int) -> bool:
    """Whether a sign at `start` belongs to `move`: at most one sentence between them, which is no attempt."""
    between = text[move[1] : start]
    if _words(text[: move[0]]) < CONTENT_WORDS <= _words(between):
        return False  # the move opens the response; the text between is the first attempt
    if len([piece for piece in SENTENCE_END.split(between) if _words(piece)]) > 1:
        return False
    tail = "" if text[move[1] - 1] in ".!?" else SENTENCE_END.split(between)[0]  # rest of the move's sentence
    return not _suffices(move[2]) or _words(between) - _words(tail) < CONTENT_WORDS


def _parse(text: str, start: int) -> tuple[int, set[str]]:
    """End and kinds of the run of signs at `start`."""
    kinds: set[str] = set()
    end, position = start, start if _longest(text, start) else _skip(GLUE, text, start)
    while sign := _longest(text, position):
        kind, end = sign
        kinds.add(kind)
        position = _skip(GLUE, text, end)
    if kinds:
        end += len(text[end : _skip(TRAIL, text, end)].rstrip())
    return end, kinds


def _skip(pattern: re.Pattern, text: str, position: int) -> int:
    """End of what `pattern` matches at `position`, which may be nothing."""
    return match.end() if (match := pattern.match(text, position)) else position


def _longest(text: str, position: int) -> tuple[str, int] | None:
    """Kind and end of the longest sign at `position`; decisive signs take precedence."""
    ends = [(kind, m.end()) for kind, pattern in SIGNS if (m := pattern.match(text, position)) and m.end() > position]
    return max([e for e in ends if e[0] == "decisive"] or ends, key=lambda e: e[1], default=None)
