"""Rules are complete, decide both ways, and are not read where a check does not hold."""

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime

import pytest

from esr.paths import DATA, ROOT
from esr.reporting import rules
from esr.reporting.numbers import find, parse_numbers
from esr.reporting.rules import decide, read_rules
from esr.statistics.estimates import Estimate

PUBLISHED = json.loads((DATA / "published.json").read_text(encoding="utf-8"))
EDITION = read_rules()
RULES = {rule.id: rule for rule in EDITION.rules}
BASE, MODEL = "smollm2-135m", "smollm2-135m-selfcorrect"


def around(value, width=0.001, n=100):
    return Estimate(value, value - width, value + width, n)


def put(files, keys, value, model=MODEL):
    """Where the stage writes it: finetune.json names a training after the model that was trained."""
    entry = files.setdefault(keys[0], {}).setdefault(BASE if keys[0] == "finetune" else model, {})
    for key in keys[1:-1]:
        entry = entry.setdefault(key, {})
    entry[keys[-1]] = value


def holding(rule):
    """Numbers under which every check of a rule holds."""
    files = {}
    for check in EDITION.checks:
        for keys in check.outcomes:
            spec = check.rule
            put(files, keys, around((spec.low + spec.high) / 2 if spec.kind == "within" else spec.limit + 0.1))
    return files


def supporting(rule):
    spec, size = rule.rule, find(PUBLISHED, *rule.published) if rule.published else None
    return {"above": lambda: spec.limit + 0.01, "below": lambda: spec.limit - 0.005, "effect": lambda: size,
            "absence": lambda: 0.0}[spec.kind]()  # fmt: skip


def opposing(rule):
    spec = rule.rule
    return {"above": lambda: spec.limit - 0.01, "below": lambda: spec.limit + 0.01,
            "effect": lambda: spec.no_effect - 0.01, "absence": lambda: 2 * spec.margin}[spec.kind]()  # fmt: skip


def verdict(rule, value, files=None):
    files = holding(rule) if files is None else files
    put(files, rule.outcome, value)
    return decide(rule, EDITION, files, MODEL, PUBLISHED).verdict


def test_every_experiment_has_a_rule_and_published_values_exist():
    assert {rule.experiment for rule in EDITION.rules} >= {"3b", *(str(n) for n in range(1, 14))}
    for rule in EDITION.rules:
        if rule.published:
            assert isinstance(find(PUBLISHED, *rule.published), int | float), rule.id


@pytest.mark.parametrize("rule", EDITION.rules, ids=RULES)
def test_a_rule_can_come_out_either_way(rule):
    checked = {tuple(keys) for check in EDITION.checks if check.id in rule.checks for keys in check.outcomes}
    assert tuple(rule.outcome) not in checked
    taught = rule.about == "taught"
    assert verdict(rule, around(supporting(rule))) == ("manipulation check passed" if taught else "reproduced")
    assert verdict(rule, around(opposing(rule))) == ("manipulation check failed" if taught else "contradicted")
    assert decide(rule, EDITION, {}, MODEL, PUBLISHED).verdict == "not measured"
    assert decide(rule, EDITION, holding(rule), None, PUBLISHED).verdict == "not measured"


@pytest.mark.parametrize("rule", [rule for rule in EDITION.rules if rule.checks], ids=lambda rule: rule.id)
def test_where_a_check_does_not_hold_nothing_is_reproduced(rule):
    for name in rule.checks:
        check = next(check for check in EDITION.checks if check.id == name)
        for broken in (None, around(-1.0), Estimate(0.5, None, None, 3)):
            files = holding(rule)
            put(files, check.outcomes[-1], broken)
            assert verdict(rule, around(supporting(rule)), files) == "not interpretable", name


def test_what_was_taught_is_never_reproduced():
    assert all("reproduced" not in verdict(rule, around(supporting(rule)))
               for rule in EDITION.rules if rule.about == "taught")  # fmt: skip


def test_an_interval_wider_than_the_published_effect_cannot_decide():
    rule = RULES["detectors-drive"]
    assert verdict(rule, around(0.1, 0.3)) == "cannot be decided at this size"
    assert verdict(rule, around(0.1, 0.2)) == "undecided at this n"
    assert verdict(rule, Estimate(0.1, None, None, 9)) == "cannot be decided at this size"


def test_a_digest_changes_with_what_decides():
    rule, sha256 = RULES["detectors-drive"], EDITION.sha256
    assert sha256(rule.model_copy(update={"n": 500})) != sha256(rule) == sha256(rule.model_copy(update={"unit": "x"}))
    looser = [c.model_copy(update={"rule": c.rule.model_copy(update={"limit": 0.0})}) if c.id == "acts" else c
              for c in EDITION.checks]  # fmt: skip
    changed = EDITION.model_copy(update={"checks": looser})
    assert changed.sha256(rule) != sha256(rule) and changed.sha256(RULES["no-steering"]) == sha256(RULES["no-steering"])
    assert len({sha256(rule) for rule in EDITION.rules}) == len(EDITION.rules)


def git(*arguments: str) -> str:
    """What git prints here; "" where there is no git, no repository or no such thing."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def versions(path: str) -> Iterator[tuple[str, str]]:
    """Commit and content of a file, from its first version on."""
    for commit in git("log", "--reverse", "--format=%H", "--", path).split():
        yield commit, git("show", f"{commit}:{path}")


def first_commits(path: str, digests_of) -> dict[str, str]:
    """The commit in which each digest of a file first appears."""
    found: dict[str, str] = {}
    for commit, text in versions(path):
        for sha256 in digests_of(text):
            found.setdefault(sha256, commit)
    return found


def test_the_committed_verdicts_are_of_these_rules():
    """Rules without a row are new. A row whose digest is another's was decided by a rule that has changed since."""
    text = git("show", "HEAD:paper/numbers/claims.json")
    if not text:
        pytest.skip("no commit with claims.json")
    decided = {row["id"]: row["sha256"] for row in parse_numbers(text)}
    assert decided.items() <= {rule.id: EDITION.sha256(rule) for rule in EDITION.rules}.items()


def test_rules_are_committed_before_the_numbers_that_they_decide(tmp_path):
    if not git("rev-parse", "HEAD~1").strip() or git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("no history")

    def written(text):
        (tmp_path / "rules.yaml").write_text(text)
        try:
            edition = read_rules(tmp_path / "rules.yaml")
        except rules.ConfigError:
            return []  # of an older form
        return [edition.sha256(rule) for rule in edition.rules]

    def decided(text):
        return [row["sha256"] for row in parse_numbers(text) if "sha256" in row and row["measured"] is not None]

    before = first_commits("data/rules.yaml", written)
    for sha256, commit in first_commits("paper/numbers/claims.json", decided).items():
        earlier = f"{commit}~1"
        inside = subprocess.run(["git", "merge-base", "--is-ancestor", before[sha256], earlier], cwd=ROOT)
        assert inside.returncode == 0, f"{sha256}: the rule is not committed before its number, in {commit}"


def test_the_rules_were_written_when_they_were_committed():
    """Where the history is there, the file's first commit is not before its date."""
    if log := git("log", "--follow", "--format=%aI", "--", "data/rules.yaml").split():
        assert datetime.fromisoformat(log[-1]).date() >= EDITION.written


def test_mistakes_in_the_file_are_named(tmp_path):
    text = rules.RULES.read_text()
    for old, new, message in (
        ("checks: [judge]\n", "checks: [juge]\n", "has the check 'juge', which is not under checks"),
        ("id: esr-small", "id: esr-organism", "rules has 'esr-organism' twice"),
        ("kind: below, limit", "kind: belowe, limit", "kind is 'belowe'"),
    ):
        (tmp_path / "rules.yaml").write_text(text.replace(old, new, 1))
        with pytest.raises(rules.ConfigError, match=message):
            read_rules(tmp_path / "rules.yaml")
