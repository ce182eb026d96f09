"""Claims: every experiment has one, rules decide hand-made numbers as they say, missing files are no failure."""

import copy
import json
from dataclasses import replace

import pytest

from esr import paths
from esr.reporting import claims, drift, numbers
from esr.reporting.claims import evaluate
from esr.statistics.estimates import NOTHING, Estimate
from esr.statistics.verdicts import UNDECIDED

PUBLISHED = json.loads((paths.DATA / "published.json").read_text(encoding="utf-8"))
CLAIMS = claims.claims(PUBLISHED)
BASE, TUNED = "smollm2-135m", "smollm2-135m-selfcorrect"
MODELS = [BASE, TUNED]


def interval(estimate, low, high, n=100):
    return Estimate(estimate, low, high, n)


def around(value, width=0.001):
    return interval(value, value - width, value + width)


def rates(restarts, score=30.0, improved=0.8):
    return {
        "multi_attempt_rate": around(restarts), "esr_rate": around(restarts * improved),
        "improvement_rate": around(improved), "first_attempt_score": around(score),
    }  # fmt: skip


def sweep(*restarts, improved=0.8):
    offsets = (-3.0, -1.3, -0.4, 3.0)
    return [{"boost_sd": sd} | rates(r, improved=improved) for sd, r in zip(offsets, restarts, strict=True)]


def prompted(restarts, esr):
    return {"monitor_yourself": {"paired_difference": around(restarts), "esr_paired_difference": around(esr)}}


def stage_verdict(verdict="reproduced", p_value=0.001):
    return {"verdict": verdict, "rule": "Reproduced when the stage says so.", "p_value_holm": p_value}


SUPPORT = {  # numbers under which every claim holds
    "esr": {
        BASE: {"unsteered": rates(0.001, 91.0), "steered": rates(0.002)},
        TUNED: {"unsteered": rates(0.005, 91.0), "steered": rates(0.25)},
    },
    "boost_sweep": {TUNED: sweep(0.02, 0.1, 0.2, 0.01)},
    "meta_prompts": {TUNED: prompted(0.2, 0.1)},
    "finetune": {BASE: {"0.1": {"unsteered": rates(0.0), "steered": rates(0.002)},
                        "0.9": {"unsteered": rates(0.01), "steered": rates(0.3)}}},
    "judge": {"annotated": {"n": 200}, "agreement": {TUNED: {
        "offline / a": {"multi_attempt_agreement": around(0.99), "direction_agreement": around(0.98)},
        "offline / b": {"multi_attempt_agreement": around(0.97), "direction_agreement": around(0.95)}}}},
    "detectors": {TUNED: {"rules": {"strict": {"qualify": 9}}, "n_pairs": 380}},
    "ablate": {TUNED: {
        "detectors": {
            "relative_reduction": around(0.4), "esr_relative_reduction": around(0.4), "score_difference": around(1.0)},
        "random": {"relative_reduction": around(0.02)},
        "held_out": {"relative_reduction": around(0.3)},
        "verdict": {name: stage_verdict() for name in ("detectors", "held_out", "random")},
        "esr_verdict": {"detectors": stage_verdict()}}},
    "activations": {TUNED: {"off_topic_ratio": around(4.0), "after_ratio": around(2.0)}},
    "controls": {TUNED: {
        "detection": {
            "prefilled": {"ratio_to_live": around(6.0)}, "on_topic": rates(0.001),
            "prefilled_detectors": {"relative_reduction": around(0.3)}},
        "sustained": {"matched_difference": {"0-32": around(12.0), "32-64": around(0.0)}}}},
}  # fmt: skip
OPPOSE = {  # and under which none does
    "esr": {
        BASE: {"unsteered": rates(0.1, 50.0), "steered": rates(0.1)},
        TUNED: {"unsteered": rates(0.2, 50.0), "steered": rates(0.003, improved=0.2)},
    },
    "boost_sweep": {TUNED: sweep(0.3, 0.1, 0.1, 0.1, improved=0.2)},
    "meta_prompts": {TUNED: prompted(-0.2, -0.1)},
    "finetune": {BASE: {"0.9": {"unsteered": rates(0.05), "steered": rates(0.01)}}},
    "judge": {"agreement": {"x": {"multi_attempt_agreement": around(0.8), "direction_agreement": around(0.7)}}},
    "detectors": {TUNED: {"rules": {"strict": {"qualify": 0}}, "n_pairs": 380}},
    "ablate": {TUNED: {
        "detectors": {
            "relative_reduction": around(-0.1), "esr_relative_reduction": around(-0.1), "score_difference": around(9)},
        "random": {"relative_reduction": around(0.5)},
        "held_out": {"relative_reduction": around(0.0)},
        "verdict": dict.fromkeys(("detectors", "random", "held_out"), stage_verdict("contradicted")),
        "esr_verdict": {"detectors": stage_verdict("contradicted")}}},
    "activations": {TUNED: {"off_topic_ratio": around(0.5), "after_ratio": around(0.9)}},
    "controls": {TUNED: {
        "detection": {
            "prefilled": {"ratio_to_live": around(0.9)}, "on_topic": rates(0.2),
            "prefilled_detectors": {"relative_reduction": around(-0.2)}},
        "sustained": {"matched_difference": {"0-32": around(-3.0)}}}},
}  # fmt: skip


def verdicts(files):
    return {c.text: evaluate(c, files, MODELS).verdict for c in CLAIMS}


def blurred(value):
    """The same numbers without any bounds, and what no stage could decide."""
    if isinstance(value, list):
        return [blurred(item) for item in value]
    if isinstance(value, Estimate):
        return NOTHING
    if isinstance(value, dict) and "p_value_holm" in value:
        return stage_verdict(UNDECIDED)
    return {k: blurred(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_every_experiment_has_a_row():
    numbers_of = {int(c.experiment.rstrip("b")) for c in CLAIMS}
    assert len(numbers_of) >= 13 and numbers_of == set(range(1, max(numbers_of) + 1))
    assert len({c.text for c in CLAIMS}) == len(CLAIMS)


def test_numbers_that_support_every_claim_reproduce_it():
    assert {text: v for text, v in verdicts(SUPPORT).items() if v != "reproduced"} == {}


def test_numbers_that_oppose_every_claim_contradict_it():
    assert {text: v for text, v in verdicts(OPPOSE).items() if v != "contradicted"} == {}


def test_missing_files_are_not_measured_and_null_measurements_undecided():
    assert set(verdicts({}).values()) == {"not measured"}
    found = verdicts(blurred(SUPPORT))
    counted = "Some latents fire"  # a count has no interval to lose
    assert {v for text, v in found.items() if not text.startswith(counted)} == {"undecided at this n"}


def test_each_row_names_its_model_and_its_rule():
    for claim in CLAIMS:
        row = evaluate(claim, SUPPORT, MODELS)
        expected = f"{BASE}, 90 % self-corrections" if claim.label else TUNED
        assert row.model == (BASE if claim.subject == "endogenous" else expected)
        assert (claim.label is not None) == (claim.experiment == "4")
        assert row.rule.startswith("Reproduced when") and row.n == row.measured.n
        if claim.verdict is None:
            assert evaluate(claim, {}, MODELS).rule == row.rule  # fixed whatever is measured
    assert {evaluate(claim, {}, MODELS).model for claim in CLAIMS} == {BASE}  # nothing known of the fine-tuned one


ABLATIONS = {("", "detectors"): 0, ("esr_", "detectors"): 1, ("", "random"): 2, ("", "held_out"): 3}


@pytest.mark.parametrize(("outcome", "condition"), ABLATIONS)
@pytest.mark.parametrize("verdict", [UNDECIDED, "contradicted", "reproduced"])
def test_a_claim_on_ablation_takes_the_verdict_of_the_stage(outcome, condition, verdict):
    """Whatever the interval alone would say: the stage has tested the difference too, and is not judged again."""
    on_ablation = [claim for claim in CLAIMS if claim.verdict is not None]
    assert len(on_ablation) == len(ABLATIONS)
    claim = replace(on_ablation[ABLATIONS[outcome, condition]], rule=lambda interval: pytest.fail("judged again"))
    files = copy.deepcopy(SUPPORT)
    files["ablate"][TUNED][f"{outcome}verdict"][condition] = stage_verdict(verdict, p_value=0.2)
    row = evaluate(claim, files, MODELS)
    assert (row.verdict, row.rule) == (verdict, stage_verdict()["rule"])
    assert row.measured == SUPPORT["ablate"][TUNED][condition][f"{outcome}relative_reduction"]


def test_a_measured_ablation_without_a_verdict_is_refused():
    files = copy.deepcopy(SUPPORT)
    del files["ablate"][TUNED]["verdict"]
    with pytest.raises(ValueError, match="No verdict of its stage for smollm2-135m-selfcorrect"):
        verdicts(files)


def test_withdrawn_rows_are_those_that_rest_on_ablation_or_on_detectors():
    withdrawn = {claim.experiment for claim in CLAIMS if claim.withdrawn}
    assert withdrawn == {"3", "3b", "6", "9", "10", "11", "13"}
    of_boost_sweeps = [claim.text for claim in CLAIMS if claim.withdrawn and claim.experiment == "11"]
    assert len(of_boost_sweeps) == 1 and "detectors ablated" in of_boost_sweeps[0]


def test_agreement_on_responses_chosen_to_be_hard_does_not_count():
    files = {"judge": {"agreement": {"annotated": {"multi_attempt_agreement": around(0.5)}}}}
    assert {v for text, v in verdicts(files).items() if text.startswith("Judges agree")} == {claims.NOT_MEASURED}


def test_rows_go_through_the_file_to_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "NUMBERS", tmp_path)
    assert claims.main(["table"]) == 1 and "claims.json does not exist" in capsys.readouterr().err
    for name, content in SUPPORT.items():
        numbers.write_numbers(name, content)
    rows = [row.model_dump() for row in claims.rows(MODELS)]
    experiments = [row["experiment"] for row in rows]
    assert experiments == sorted(experiments, key=lambda e: (int(e.rstrip("b")), e))
    numbers.write_numbers("claims", rows)
    assert claims.main(["table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CLAIMS) + 2 and {line.count(" | ") for line in lines} == {7}
    (line,) = [line for line in lines if "restart less often (relative reduction)" in line]
    assert f"| 25.0 % | 40.0 % [39.9, 40.1] | 100 | {TUNED} | machinery | withdrawn (reproduced) |" in line


def test_lists_of_numbers_are_compared_row_by_row():
    one = [{"claim": "a", "measured": interval(0.2, 0.1, 0.3)}, {"claim": "b", "measured": None}]
    near = [{"claim": "a", "measured": interval(0.25, 0.15, 0.35)}, {"claim": "b", "measured": None}]
    assert drift.compare(near, one) == (
        "within intervals", ["[0].measured: committed 0.2 [0.1, 0.3], fresh 0.25 [0.15, 0.35]"],
    )  # fmt: skip
    assert drift.compare(one[:1], one)[0] == "different"
    assert drift.compare([one[0] | {"claim": "c"}, one[1]], one)[0] == "different"
