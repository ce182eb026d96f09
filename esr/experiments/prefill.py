"""Detection control (experiment 11): does the text that went wrong suffice to make the model begin again?

A *beginning* is a steered answer up to the end of a sentence, off topic and without a restart. Put in as the beginning
of a new answer (esr.steering.trials.Plan.prefill, the very tokens that were written), it shows the model the failed
text without the push that made it. What comes after is compared, trial by trial, with what the steered answer itself
did from there on ("live"), with a beginning that belongs to another prompt ("foreign"), with the model's own good one
("own"), and with latents ablated.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from esr.experiments.run import paired
from esr.judging.offline import OfflineJudge
from esr.judging.restarts import find_restarts
from esr.paths import data_dir
from esr.statistics import intervals, metrics
from esr.statistics.comparisons import mcnemar_exact, paired_difference, ratio, relative_reduction
from esr.steering.trials import Plan
from esr.storage.digests import digest
from esr.storage.records import Judgement, Trial

# A stop after a word of two letters or more ("1." opens an item of a list), closing marks, spaces.
SENTENCE_END = re.compile(r"[^\W\d_]{2}[)\"'”’]*[.!?…]+[\"'”’)*]*\s*\Z")
BASELINE = "prefilled"  # what the other conditions are compared with
PUT_IN = ("prefilled", "prefilled_steered", "foreign", "own")


@dataclass(frozen=True)
class Beginning:
    """A steered trial and the beginnings that are put in for it, as token ids.

    off_topic: of the steered answer itself. own: of the unsteered answer to the same prompt with the same seed.
    foreign: of the unsteered answer to another prompt.
    """

    trial: Trial
    off_topic: tuple[int, ...]
    own: tuple[int, ...]
    foreign: tuple[int, ...]


@dataclass(frozen=True)
class Rules:
    """Which beginnings are used: at least `least` and at most `most` tokens, an off-topic score of at most `off_topic`
    (0-100)."""

    least: int
    most: int
    off_topic: float


def sentence_cut(tokens: Sequence[int], tokenizer, least: int, most: int) -> int | None:
    """How many of `tokens` make up the shortest beginning of at least `least` tokens that ends with a sentence.

    None where no sentence ends within `most` tokens, or one ends inside a token. The first end is taken, whatever
    comes later, so that answers which restart and answers which do not are cut by the same rule.
    """
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    for count in range(least, min(most, len(tokens)) + 1):
        beginning = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        rest = text[len(beginning) :]
        whole_word = beginning[-1:].isspace() or not rest or rest[0].isspace()
        if text.startswith(beginning) and whole_word and SENTENCE_END.search(beginning):
            return count
    return None


def usable_cut(trial: Trial, tokenizer, rules: Rules) -> tuple[int, ...]:
    """Tokens of the trial's beginning; empty where there is none, or where a restart begins within it."""
    count = sentence_cut(trial.tokens, tokenizer, rules.least, rules.most)
    if count is None:
        return ()
    end = len(tokenizer.decode(trial.tokens[:count], skip_special_tokens=True))
    restarts = find_restarts(trial.text)
    return () if restarts and restarts[0].start < end else tuple(trial.tokens[:count])


def find_beginnings(
    steered: Sequence[Trial], unsteered: Sequence[Trial], tokenizer, scorer, rules: Rules, *, n: int, seed: int
) -> list[Beginning]:
    """At most `n` beginnings, drawn by seed from the steered trials that have one; fewer are the first of more.

    scorer: esr.judging.relevance.Scorer. The foreign beginning is drawn for each trial among all other prompts'
    unsteered answers. A trial without one of the three beginnings is left out of every condition.
    """
    good = {_key(t): (t, usable_cut(t, tokenizer, rules)) for t in unsteered}
    wrong = [(t, cut) for t in steered if (cut := usable_cut(t, tokenizer, rules))]
    texts = [tokenizer.decode(cut, skip_special_tokens=True) for _, cut in wrong]
    scores = scorer.score([t.prompt for t, _ in wrong], texts, [t.label for t, _ in wrong])
    found = []
    for (trial, cut), score in zip(wrong, scores, strict=True):
        own = good.get(_key(trial), (None, ()))[1]
        others = [tokens for other, tokens in good.values() if tokens and other.prompt_id != trial.prompt_id]
        if score <= rules.off_topic and own and others:
            foreign = random.Random(digest(seed, "foreign", _key(trial))).choice(others)
            found.append(Beginning(trial, cut, own, foreign))
    return sorted(found, key=lambda beginning: digest(seed, _key(beginning.trial)))[:n]


def _key(trial: Trial) -> tuple[int, str, int]:
    return trial.latent, trial.prompt_id, trial.seed


def detection_plans(beginnings: Sequence[Beginning], ablations: dict[str, tuple[int, ...]]) -> list[Plan]:
    """Every condition of experiment 11 but "live", whose answers are there already.

    No condition steers but "prefilled_steered". `ablations`: condition -> latents zero-ablated while the model goes on
    after the off-topic beginning.
    """
    plans = []
    for beginning in beginnings:
        trial = beginning.trial
        plain = Plan(BASELINE, trial.latent, trial.label, trial.prompt_id, trial.prompt, trial.seed, 0.0, trial.layer)
        plain = replace(plain, prefill=beginning.off_topic)
        plans += [
            plain,
            replace(plain, condition="prefilled_steered", boost=trial.boost),
            replace(plain, condition="foreign", prefill=beginning.foreign),
            replace(plain, condition="own", prefill=beginning.own),
            *(replace(plain, condition=name, ablate=latents) for name, latents in ablations.items()),
        ]
    return plans


def live_trials(beginnings: Sequence[Beginning], tokenizer) -> list[Trial]:
    """The steered answers themselves, split where the others begin: their beginning as if put in, then the rest."""
    trials = []
    for beginning in beginnings:
        trial, count = beginning.trial, len(beginning.off_topic)
        rest = trial.tokens[count:]
        changes = {
            "id": digest("live", trial.id, count),
            "condition": "live",
            "prefill": list(beginning.off_topic),
            "tokens": rest,
            "text": tokenizer.decode(rest, skip_special_tokens=True),
        }
        trials.append(trial.model_copy(update=changes))
    return trials


def whole(trial: Trial, tokenizer) -> Trial:
    """The trial with beginning and continuation as one answer, as a judge must see it: a restart is a second attempt.

    What was put in counts towards the length limit, so that every condition has as much room to restart as the live
    answer had: continuations are cut where that one would have been.
    """
    tokens = [*trial.prefill, *trial.tokens][: trial.max_new_tokens]
    return trial.model_copy(update={"tokens": tokens, "text": tokenizer.decode(tokens, skip_special_tokens=True)})


def judge_continuations(
    trials: Sequence[Trial], tokenizer, judge: OfflineJudge
) -> tuple[list[Judgement], Float[ndarray, " trials"]]:
    """Judgements of the whole answers, restarts counted in the continuations alone, and each continuation's own score.

    The score is the relevance (0-100) of the text after the beginning, restarts or not.
    """
    answers = [whole(trial, tokenizer) for trial in trials]
    starts = [len(tokenizer.decode(trial.prefill, skip_special_tokens=True)) for trial in trials]
    judgements = [
        after_beginning(judgement, start) for judgement, start in zip(judge.judge(answers), starts, strict=True)
    ]
    continuations = [answer.text[start:] for answer, start in zip(answers, starts, strict=True)]
    scores = judge.scorer.score([t.prompt for t in trials], continuations, [t.label for t in trials])
    return judgements, scores


def after_beginning(judgement: Judgement, start: int) -> Judgement:
    """The judgement with no attempt that begins before character `start`: it is joined to the one before, whose score
    stays."""
    attempts = judgement.attempts[:1]
    for attempt in judgement.attempts[1:]:
        if attempt.start >= start:
            attempts.append(attempt)
        else:
            attempts[-1] = attempts[-1].model_copy(update={"end": attempt.end})
    return judgement.model_copy(update={"attempts": attempts})


def detection_rates(
    frame: pd.DataFrame, scores: Sequence[float], conditions: Sequence[str], *, on_topic: float, **interval
) -> dict:
    """`{condition: rates}` of experiment 11. `frame`: metrics.table of the judgements; `scores`: of the continuations.

    Beside metrics.rates: silent_recovery_rate, no restart and a continuation of at least `on_topic`; and, where both
    conditions have trials, `paired_difference` (rate less that of "prefilled"), its `p_value` (McNemar, exact) and
    `relative_reduction` of the multi-attempt rate. "prefilled" itself has `ratio_to_live` instead, its multi-attempt
    rate over that of "live". A condition without trials has nulls and n 0.
    """
    frame = frame.assign(silent=~metrics.multi_attempt(frame) & (pd.Series(scores, frame.index, float) >= on_topic))
    result = {}
    for condition in conditions:
        rows = frame[(frame.condition == condition) & metrics.scored(frame)]
        silent = intervals.rate(rows.silent, rows.latent, **interval)
        result[condition] = metrics.rates(rows, **interval) | {"silent_recovery_rate": silent}
        other = "live" if condition == BASELINE else BASELINE
        there = len(rows) and (frame.condition == other).any()
        baseline, own = paired(frame, other, condition) if there else (rows[:0], rows[:0])
        events = metrics.multi_attempt(baseline), metrics.multi_attempt(own)
        if condition == BASELINE:
            result[condition]["ratio_to_live"] = ratio(events[1], events[0], own.latent, **interval)
        else:
            result[condition] |= {
                "paired_difference": paired_difference(*events, own.latent, **interval),
                "relative_reduction": relative_reduction(*events, own.latent, **interval),
                "p_value": mcnemar_exact(*events)["p_value"] if there else None,
            }
    return result


def read_ablations(model: str, n_random: int) -> dict[str, tuple[int, ...]]:
    """The detectors and the first `n_random` random sets of the stage `detectors` (sets.jsonl: a row a set, with
    `condition` and `latents`), as conditions of this experiment.

    Raises FileNotFoundError or ValueError with the file and what it lacks.
    """
    path = data_dir("detectors", model) / "sets.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage `detectors` first.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sets = {row["condition"]: tuple(row["latents"]) for row in rows}
    names = ["detectors", *(f"random_{i + 1}" for i in range(n_random))]
    for name in names:
        if not sets.get(name):
            raise ValueError(f"{path} has no latents for {name!r}: lower controls.n_random or run `detectors` again.")
    return {f"{BASELINE}_{name}": sets[name] for name in names}
