"""The paper's claims and the rule that decides each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from esr.reporting import lookup
from esr.reporting.lookup import RATE, Measure, at, entry
from esr.statistics import verdicts
from esr.statistics.estimates import Estimate, difference
from esr.statistics.verdicts import Verdict

# What a verdict is about, in a model of this size.
SUBJECTS = {
    "machinery": "how resistance works once it is there: can be tested in a model that was fine-tuned to restart",
    "taught": "what the fine-tuned model was taught: shows that the protocol finds it, not that others do it",
    "endogenous": "what models do that were not taught: this study can speak of its own base model only",
}
Subject = Literal["machinery", "taught", "endogenous"]
Rule = Callable[[Estimate], Verdict]
SHIFT = 5.0  # times the published change of the first-attempt score: within that, it counts as unchanged


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's abstract or experiments, and how it is decided.

    measure: finds the Estimate in the numbers files, None where it is not there. rule: what it says. verdict: finds the
    verdict of the stage that measured it; where there is one, it counts and no rule is applied a second time.
    """

    experiment: str
    text: str
    measure: Measure
    rule: Rule
    published: float | None = None
    unit: str = "%"
    subject: Subject = "machinery"
    verdict: Callable[[dict, str], Verdict | None] = lambda files, model: None


def above(limit: float) -> Rule:
    return lambda interval: verdicts.bound(interval, limit, side="above")


def below(limit: float) -> Rule:
    return lambda interval: verdicts.bound(interval, limit, side="below")


def effect(published: float, null: float = 0.0) -> Rule:
    return lambda interval: verdicts.effect(interval, published, null=null)


def ablation(condition: str, outcome: str = "") -> dict:
    """Where notebook 13 left a relative reduction and its verdict; outcome "" or "esr_"."""
    return {
        "measure": lambda files, model, base: lookup.ablation_effect(files, model, condition, outcome),
        "verdict": lambda files, model: lookup.ablation_verdict(files, model, condition, outcome),
    }


def absence(margin: float) -> Rule:
    return lambda interval: verdicts.absence(interval, margin)


def claims(published: dict) -> list[Claim]:
    """Every claim. `published`: data/published.json."""
    return [*_resistance(published), *_mechanism(published), *_judging(published), *_controls(published)]


def _resistance(published: dict) -> list[Claim]:
    """Experiments 1, 2, 4, 5 and 8: how often models restart, and what makes them."""
    large, few = published["models"]["llama-3.3-70b"], published["models"]["llama-3.1-8b"]["esr_rate_max"]
    sweep, monitored, plain = published["boost_sweep"], published["meta_prompt"], published["no_steering"]
    improved, peak, floor = large["esr_rate"] / large[RATE], sweep["improvement_peak"], plain["first_attempt_score_min"]
    return [
        Claim(
            "1",
            f"Steered, a model restarts and improves in more than {100 * few:g} % of answers (the largest model does)",
            at("esr", "steered", "esr_rate"),
            above(few),
            large["esr_rate"],
            subject="taught",
        ),
        Claim(
            "1",
            f"Smaller models do so in fewer than {100 * few:g} %",
            at("esr", "steered", "esr_rate"),
            below(few),
            few,
            subject="endogenous",
        ),
        Claim(
            "1",
            "A restart is an improvement more often than not",
            at("esr", "steered", "improvement_rate"),
            effect(improved, null=0.5),
            improved,
            subject="taught",
        ),
        Claim(
            "2",
            "Inverted U: near the threshold more answers restart than at either end of the sweep (difference)",
            lambda files, model, base: lookup.inverted_u(entry(files, "boost_sweep", model), sweep),
            above(0.0),
        ),
        Claim(
            "2",
            f"Near {sweep['improvement_peak_sd']:+g} sd a restart is an improvement more often than not",
            lambda files, model, base: lookup.improvement(entry(files, "boost_sweep", model), sweep),
            effect(peak, null=0.5),
            peak,
            subject="taught",
        ),
        Claim(
            "4",
            "Fine-tuned with the largest share of self-corrections and steered, a model restarts more often than "
            "its base (difference)",
            lambda files, model, base: difference(
                lookup.tuned(files, "steered"), entry(files, "esr", base, "steered", RATE)
            ),
            above(0.0),
        ),
        Claim(
            "4",
            "Fine-tuned with the largest share, it restarts more often steered than unsteered (difference)",
            lambda files, model, base: difference(lookup.tuned(files, "steered"), lookup.tuned(files, "unsteered")),
            above(0.0),
        ),
        Claim(
            "5",
            "Told to monitor itself, the model restarts more often (difference)",
            at("meta_prompts", "monitor_yourself", "paired_difference"),
            above(0.0),
            monitored[RATE] - large[RATE],
        ),
        Claim(
            "5",
            "Told to monitor itself, the model resists more often (difference of ESR rates)",
            at("meta_prompts", "monitor_yourself", "esr_paired_difference"),
            above(0.0),
            monitored["esr_rate"] - large["esr_rate"],
        ),
        Claim(
            "8",
            f"Without steering the model restarts in fewer than {100 * few:g} % of answers",
            at("esr", "unsteered", RATE),
            below(few),
            plain[RATE],
            subject="endogenous",
        ),
        Claim(
            "8",
            "Without steering first attempts score no lower than those of any published model",
            at("esr", "unsteered", "first_attempt_score"),
            above(floor),
            floor,
            "points",
            "endogenous",
        ),
    ]


def _mechanism(published: dict) -> list[Claim]:
    """Experiments 3, 6, 9, 10 and 13: off-topic detectors, what they do and what follows without them."""
    large, ablated = published["models"]["llama-3.3-70b"], published["detector_ablation"]
    before, after = (published["activation_statistics"][f"{name}_topic_ratio"] for name in ("off", "on"))
    loss, esr_loss = ablated["multi_attempt_reduction"], ablated["esr_reduction"]
    shift = ablated["first_attempt_score"] - large["first_attempt_score"]
    return [
        Claim(
            "3",
            "Some latents fire on answers to another prompt and stay silent on answers to their own",
            lambda files, model, base: lookup.strict_detectors(entry(files, "detectors", model)),
            above(0.5),
            ablated["n_latents"],
            "latents",
        ),
        Claim(
            "3b",
            "Detectors ablated, steered responses restart less often (relative reduction)",
            rule=effect(loss),
            published=loss,
            **ablation("detectors"),
        ),
        Claim(
            "3b",
            "Detectors ablated, the ESR rate falls (relative reduction)",
            rule=effect(esr_loss),
            published=esr_loss,
            **ablation("detectors", "esr_"),
        ),
        Claim(
            "3b",
            f"Detectors ablated, first attempts score as before (within {SHIFT:g} times the published change)",
            at("ablation", "detectors", "score_difference"),
            absence(SHIFT * shift),
            shift,
            "points",
        ),
        Claim(
            "6",
            "Detectors fall after the restart (ratio to unsteered answers, before it less after it)",
            lambda files, model, base: lookup.fall(entry(files, "activations", model)),
            above(0.0),
            before - after,
            "x",
        ),
        Claim(
            "9",
            "Before the restart detectors are more active than in unsteered answers (ratio)",
            at("activations", "off_topic_ratio"),
            effect(before, null=1.0),
            before,
            "x",
        ),
        Claim(
            "9",
            "After the restart they still are (ratio)",
            at("activations", "after_ratio"),
            effect(after, null=1.0),
            after,
            "x",
        ),
        Claim(
            "10",
            "Random latents ablated, restarts stay as frequent (reduction within half the published one)",
            rule=absence(loss / 2),
            published=1 - published["random_ablation"][RATE] / large[RATE],
            **ablation("random"),
        ),
        Claim(
            "10",
            "Ablating detectors reduces restarts more than ablating random latents (difference of reductions)",
            lambda files, model, base: difference(
                *(entry(files, "ablation", model, name, "relative_reduction") for name in ("detectors", "random"))
            ),
            above(0.0),
        ),
        Claim(
            "13",
            "The reduction holds on prompts that the detectors were not found on (relative reduction)",
            rule=effect(loss),
            published=loss,
            **ablation("held_out"),
        ),
    ]


def _judging(published: dict) -> list[Claim]:
    """Experiment 7: other judges; the two that agree least speak."""
    claimed = {"multi_attempt": "an answer restarts", "direction": "a restart is an improvement"}
    return [_agreement(f"{name}_agreement", text, published["cross_judge"]) for name, text in claimed.items()]


def _agreement(name: str, text: str, published: dict) -> Claim:
    def measure(files: dict, model: str, base: str) -> Estimate | None:
        return lookup.lowest_agreement(lookup.study_agreements(files.get("judge")), name)

    published_min = published[f"{name}_min"]
    return Claim("7", f"Judges agree whether {text}", measure, above(published_min), published_min)


def _controls(published: dict) -> list[Claim]:
    """Experiments 11 and 12."""
    few, times = (
        published["models"]["llama-3.1-8b"]["esr_rate_max"],
        published["detection_control"]["ratio_to_live_min"],
    )
    return [
        Claim(
            "11",
            "Off-topic text put in, without steering, brings restarts more often than live steering (ratio)",
            at("controls", "detection", "prefilled", "ratio_to_live"),
            effect(times, null=1.0),
            times,
            "x",
        ),
        Claim(
            "11",
            f"Its own good beginning put in, the model restarts in fewer than {100 * few:g} % of answers",
            at("controls", "detection", "on_topic", RATE),
            below(few),
        ),
        Claim(
            "11",
            "Detectors ablated, off-topic text put in brings fewer restarts (relative reduction)",
            at("controls", "detection", "prefilled_detectors", "relative_reduction"),
            above(0.0),
        ),
        Claim(
            "12",
            "After a restart text is more on topic than after as many on-topic tokens put in (first window)",
            lambda files, model, base: lookup.first_window(
                entry(files, "controls", model, "sustained", "matched_difference")
            ),
            above(0.0),
            None,
            "points",
        ),
    ]
