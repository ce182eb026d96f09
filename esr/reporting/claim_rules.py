"""The paper's claims and the rule that decides each; verdicts on ablations come from esr.experiments.ablation."""

from __future__ import annotations

from dataclasses import replace

from esr.reporting import lookup
from esr.reporting.claim import Claim, ablation, above, absence, below, effect
from esr.reporting.lookup import RATE, at, entry

SHIFT = 5.0  # first-attempt scores within this many published changes count as unchanged


def claims(published: dict) -> list[Claim]:
    """Every claim. `published`: data/published.json."""
    withdrawn = [replace(claim, withdrawn=True) for part in (_detectors, _ablations) for claim in part(published)]
    return [claim for part in (_rates, _interventions, _judging, _controls) for claim in part(published)] + withdrawn


def _rates(published: dict) -> list[Claim]:
    """Experiments 1 and 8: how often models restart, steered and unsteered."""
    large, few = published["models"]["llama-3.3-70b"], published["models"]["llama-3.1-8b"]["esr_rate_max"]
    plain, improved = published["no_steering"], large["esr_rate"] / large[RATE]
    floor = plain["first_attempt_score_min"]
    return [
        Claim(
            "1",
            f"Steered, a model restarts and improves in more than {100 * few:g} % of responses (as the largest does)",
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
            "8",
            f"Without steering, the model restarts in fewer than {100 * few:g} % of responses",
            at("esr", "unsteered", RATE),
            below(few),
            plain[RATE],
            subject="endogenous",
        ),
        Claim(
            "8",
            "Without steering, first attempts score no lower than those of any published model",
            at("esr", "unsteered", "first_attempt_score"),
            above(floor),
            floor,
            "points",
            "endogenous",
        ),
    ]


def _interventions(published: dict) -> list[Claim]:
    """Experiments 2, 4 and 5: boost, fine-tuning and instruction."""
    large, monitored = published["models"]["llama-3.3-70b"], published["meta_prompt"]
    sweep, peak = published["boost_sweep"], published["boost_sweep"]["improvement_peak"]
    return [
        Claim(
            "2",
            "Inverted U: near the threshold more responses restart than at either end of the sweep (difference)",
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
            "Fine-tuned on the largest share of self-corrections, a steered model restarts more often than its base "
            "(difference)",
            lookup.finetuning_effect,
            above(0.0),
            label=lookup.finetuned_label,
        ),
        Claim(
            "4",
            "Fine-tuned with the largest share, it restarts more often steered than unsteered (difference)",
            lookup.steering_effect,
            above(0.0),
            label=lookup.finetuned_label,
        ),
        Claim(
            "5",
            "With the self-monitoring instruction, the model restarts more often (difference)",
            at("meta_prompts", "monitor_yourself", "paired_difference"),
            above(0.0),
            monitored[RATE] - large[RATE],
        ),
        Claim(
            "5",
            "With the self-monitoring instruction, the model resists more often (difference of ESR rates)",
            at("meta_prompts", "monitor_yourself", "esr_paired_difference"),
            above(0.0),
            monitored["esr_rate"] - large["esr_rate"],
        ),
    ]


def _detectors(published: dict) -> list[Claim]:
    """Experiments 3, 6 and 9: off-topic detectors and their activity; withdrawn, as BOS was read too."""
    before, after = (published["activation_statistics"][f"{name}_topic_ratio"] for name in ("off", "on"))
    return [
        Claim(
            "3",
            "Some latents fire on responses to another prompt and stay silent on matched responses",
            lambda files, model, base: lookup.strict_detectors(entry(files, "detectors", model)),
            above(0.5),
            published["detector_ablation"]["n_latents"],
            "latents",
        ),
        Claim(
            "6",
            "Detector activity falls after the restart (ratio to unsteered responses, before minus after)",
            lambda files, model, base: lookup.activity_decrease(entry(files, "activations", model)),
            above(0.0),
            before - after,
            "x",
        ),
        Claim(
            "9",
            "Before the restart, detectors are more active than in unsteered responses (ratio)",
            at("activations", "off_topic_ratio"),
            effect(before, null=1.0),
            before,
            "x",
        ),
        Claim(
            "9",
            "After the restart, detectors are more active than in unsteered responses (ratio)",
            at("activations", "after_ratio"),
            effect(after, null=1.0),
            after,
            "x",
        ),
    ]


def _ablations(published: dict) -> list[Claim]:
    """Experiments 3b, 10 and 13: responses with detectors ablated; withdrawn, as BOS was edited too."""
    large, ablated = published["models"]["llama-3.3-70b"], published["detector_ablation"]
    loss, esr_loss = ablated["multi_attempt_reduction"], ablated["esr_reduction"]
    shift = ablated["first_attempt_score"] - large["first_attempt_score"]
    return [
        Claim(
            "3b",
            "With detectors ablated, steered responses restart less often (relative reduction)",
            **ablation("detectors", loss),
        ),
        Claim(
            "3b",
            "With detectors ablated, the ESR rate falls (relative reduction)",
            **ablation("detectors", esr_loss, "esr_"),
        ),
        Claim(
            "3b",
            f"With detectors ablated, first attempts score as before (within {SHIFT:g} times the published change)",
            at("ablate", "detectors", "score_difference"),
            absence(SHIFT * shift),
            shift,
            "points",
        ),
        Claim(
            "10",
            "With random latents ablated, restarts stay as frequent (reduction within half the published one)",
            **ablation("random", 1 - published["random_ablation"][RATE] / large[RATE]),
        ),
        Claim(
            "10",
            "Ablating detectors reduces restarts more than ablating random latents (difference of reductions)",
            lookup.detectors_over_random,
            above(0.0),
        ),
        Claim(
            "13",
            "The reduction holds on prompts not used to find the detectors (relative reduction)",
            **ablation("held_out", loss),
        ),
    ]


def _judging(published: dict) -> list[Claim]:
    """Experiment 7: other judges, by the pair with the smallest agreement."""
    agreements = []
    for name, text in (("multi_attempt", "a response restarts"), ("direction", "a restart is an improvement")):
        limit = published["cross_judge"][f"{name}_agreement_min"]
        measure = lookup.min_agreement(f"{name}_agreement")
        agreements.append(Claim("7", f"Judges agree whether {text}", measure, above(limit), limit))
    return agreements


def _controls(published: dict) -> list[Claim]:
    """Experiments 11 and 12."""
    few = published["models"]["llama-3.1-8b"]["esr_rate_max"]
    times = published["detection_control"]["ratio_to_live_min"]
    return [
        Claim(
            "11",
            "An off-topic prefill without steering brings more restarts than live steering (ratio)",
            at("controls", "detection", "prefilled", "ratio_to_live"),
            effect(times, null=1.0),
            times,
            "x",
        ),
        Claim(
            "11",
            f"With an on-topic prefilled opening, the model restarts in fewer than {100 * few:g} % of responses",
            at("controls", "detection", "on_topic", RATE),
            below(few),
        ),
        Claim(
            "11",
            "With detectors ablated, an off-topic prefill brings fewer restarts (relative reduction)",
            at("controls", "detection", "prefilled_detectors", "relative_reduction"),
            above(0.0),
            withdrawn=True,  # as all that rests on ablation
        ),
        Claim(
            "12",
            "Text is more on topic after a restart than after an equally long on-topic prefill (first window)",
            lookup.sustained_difference,
            above(0.0),
            unit="points",
        ),
    ]
