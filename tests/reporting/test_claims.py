"""The claims table: from numbers files on disk and data/rules.yaml to claims.json, with every rule and every check."""

import json

import pytest

from esr import paths
from esr.config.registry import base_of
from esr.reporting import claims, drift, numbers, rules
from esr.statistics.estimates import NOTHING, Estimate

PUBLISHED = json.loads((paths.DATA / "published.json").read_text(encoding="utf-8"))
EDITION = rules.read_rules()
BASE, TUNED = "smollm2-135m", "smollm2-135m-selfcorrect"
MODELS = [BASE, TUNED]
SUPPORTED = {"taught": "manipulation check passed"}  # by subject, others: reproduced
OPPOSED = {"taught": "manipulation check failed"}  # others: contradicted


def around(value, width=0.001):
    return Estimate(value, value - width, value + width, 100)


def support(spec, published=None):
    """A number for which a rule or check holds."""
    return {
        "above": lambda: spec.limit + 0.05, "below": lambda: spec.limit - 0.005, "effect": lambda: published,
        "absence": lambda: 0.0, "within": lambda: (spec.low + spec.high) / 2,
    }[spec.kind]()  # fmt: skip


def oppose(spec):
    """A number for which it does not."""
    return {
        "above": lambda: spec.limit - 0.05, "below": lambda: spec.limit + 0.05,
        "effect": lambda: spec.no_effect - 0.05, "absence": lambda: 2 * spec.margin,
        "within": lambda: 2 * spec.high - spec.low + 0.05,
    }[spec.kind]()  # fmt: skip


def put(files, model, keys, value):
    """Where the stage writes it: finetune.json names a training after the model that was trained."""
    entry = files.setdefault(keys[0], {}).setdefault(base_of(model) if keys[0] == "finetune" else model, {})
    for key in keys[1:-1]:
        entry = entry.setdefault(key, {})
    entry[keys[-1]] = value


def holding():
    """Numbers for which every check holds in both models."""
    files = {}
    for model in MODELS:
        for check in EDITION.checks:
            for keys in check.outcomes:
                put(files, model, keys, around(support(check.rule)))
    return files


def model_of(rule):
    return {"base": BASE, "organism": TUNED}[rule.model]


def verdicts(rule, files):
    """The verdict on a rule in claims.json, made from files on disk."""
    for path in paths.NUMBERS.glob("*.json"):
        path.unlink()
    for name, content in files.items():
        numbers.write_numbers(name, content)
    numbers.write_numbers("claims", [row.model_dump() for row in claims.rows(MODELS)])
    return {row.id: row for row in claims.as_rows(numbers.read_numbers("claims"))}[rule.id]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NUMBERS", tmp_path)


@pytest.mark.parametrize("rule", EDITION.rules, ids=lambda rule: rule.id)
def test_a_claim_comes_out_either_way(rule):
    published = numbers.find(PUBLISHED, *rule.published) if rule.published else None
    files = holding()
    put(files, model_of(rule), rule.outcome, around(support(rule.rule, published)))
    row = verdicts(rule, files)
    assert row.verdict == SUPPORTED.get(rule.about, "reproduced") and row.failed_checks == []
    assert (row.model, row.about, row.sha256) == (model_of(rule), rule.about, EDITION.sha256(rule))
    assert row.published == published and row.n == row.measured.n == 100
    put(files, model_of(rule), rule.outcome, around(oppose(rule.rule)))
    assert verdicts(rule, files).verdict == OPPOSED.get(rule.about, "contradicted")
    put(files, model_of(rule), rule.outcome, NOTHING)
    undecided = "cannot be decided at this size" if rule.rule.kind == "effect" else "undecided at this n"
    assert verdicts(rule, files).verdict == undecided


@pytest.mark.parametrize("rule", [rule for rule in EDITION.rules if rule.checks], ids=lambda rule: rule.id)
def test_a_sham_or_another_check_that_fails_leaves_no_claim_reproduced(rule):
    published = numbers.find(PUBLISHED, *rule.published) if rule.published else None
    for check in EDITION.checks_of(rule):
        for broken in (around(oppose(check.rule)), NOTHING, None):
            files = holding()
            put(files, model_of(rule), rule.outcome, around(support(rule.rule, published)))
            put(files, model_of(rule), check.outcomes[-1], broken)
            row = verdicts(rule, files)
            assert (row.verdict, row.failed_checks) == ("not interpretable", [check.id])


def test_rules_on_the_organism_are_never_read_on_a_base_model():
    files = holding()
    for rule in EDITION.rules:
        for model in MODELS:
            published = numbers.find(PUBLISHED, *rule.published) if rule.published else None
            put(files, model, rule.outcome, around(support(rule.rule, published)))
    both, alone = claims.rows(MODELS, files), claims.rows([BASE], files)
    assert {row.model for row in both} == set(MODELS) and "not measured" not in {row.verdict for row in both}
    for rule, row in zip(EDITION.rules, alone, strict=True):
        assert row.model == (BASE if rule.model == "base" else None)
        assert (row.verdict == "not measured") == (rule.model == "organism")


def test_without_numbers_nothing_is_measured_and_the_rules_are_the_same():
    measured, nothing = claims.rows(MODELS, holding()), claims.rows(MODELS, {})
    assert {row.verdict for row in nothing} == {"not measured"} and {row.model for row in nothing} == {BASE, None}
    assert [row.rule for row in nothing] == [row.rule for row in measured]
    assert all(row.rule.startswith(("Reproduced when", "Passed when")) for row in nothing)


def test_the_state_of_each_check_is_shown_by_model():
    files = holding()
    put(files, BASE, EDITION.checks[0].outcomes[0], around(oppose(EDITION.checks[0].rule)))
    del files["ablate"][BASE]
    found = claims.states(MODELS, files)
    assert found["judge"] == {BASE: "does not hold", TUNED: "holds"}
    assert found["sham"] == {BASE: "not measured", TUNED: "holds"}


def test_rows_go_through_the_file_to_the_table(capsys):
    assert claims.main(["table"]) == 1 and "claims.json does not exist" in capsys.readouterr().err
    files = holding()
    put(files, TUNED, ["ablate", "detectors", "relative_reduction"], around(0.4))
    put(files, TUNED, ["detectors", "held_out_auc"], Estimate(0.7, None, None, 9))
    verdicts(EDITION.rules[0], files)
    assert claims.main(["table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(EDITION.rules) + 2 and {line.count(" | ") for line in lines} == {8}
    (line,) = [line for line in lines if "restart less often (relative reduction)" in line]
    assert line.endswith(f"| 25.0 % | 40.0 % [39.9, 40.1] | 100 | {TUNED} | mechanism | reproduced | – |")
    assert any(f"| – | 0.70 | 9 | {TUNED} | mechanism | undecided at this n | – |" in line for line in lines)


def test_lists_of_numbers_are_compared_row_by_row():
    one = [{"id": "a", "measured": around(0.2, 0.1)}, {"id": "b", "measured": None}]
    near = [{"id": "a", "measured": around(0.25, 0.1)}, {"id": "b", "measured": None}]
    assert drift.compare(near, one) == (
        "within intervals", ["[0].measured: committed 0.2 [0.1, 0.3], fresh 0.25 [0.15, 0.35]"],
    )  # fmt: skip
    assert drift.compare(one[:1], one)[0] == "different"
    assert drift.compare([one[0] | {"id": "c"}, one[1]], one)[0] == "different"
