import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from esr import paths
from esr.reporting import numbers, paper
from esr.statistics.estimates import NOTHING, Estimate

REPOSITORY = paths.ROOT
CHOSEN = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["organism"]["ratio"]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"><rect width="60" height="40" fill="#888"/></svg>'


def estimate(value, low, high, n=24):
    return Estimate(value, low, high, n)


def condition(multi, score):
    four = {
        "multi_attempt_rate": estimate(multi, 0.0, 0.14),
        "improvement_rate": NOTHING if multi == 0 else estimate(0.5, 0.1, 0.9, 2),
        "esr_rate": estimate(multi / 2, 0.0, 0.14),
        "first_attempt_score": estimate(score, score - 3, score + 3),
    }
    counts = {"n_trials": 24, "n_unscored": 0, "n_empty": 0, "n_run_error": 0, "n_latents": 6}
    outcomes = {
        "placebo_rate": estimate(multi / 4, 0.0, 0.1),
        "esr_above_placebo": NOTHING if multi == 0 else estimate(multi / 4, -0.1, 0.1),
        "net_esr_rate": estimate(-multi / 3, -0.2, 0.1),
        "recovery_rate": estimate(0.04, 0.0, 0.1),
        "silent_recovery_rate": estimate(0.04, 0.0, 0.1),
    }
    return (
        four
        | counts
        | outcomes
        | {"degraded_rate": estimate(0.04, 0.0, 0.1), "without_degraded": four, "unclustered": {}}
    )


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with invented numbers: only the text and the settings are real."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "NUMBERS", tmp_path / "paper" / "numbers")
    for name in ("paper/paper.typ", "paper/references.bib", "data/published.json", "data/models.yaml", "params.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    model = "smollm2-135m"
    for name in ("esr_by_model", "first_attempt_scores", f"calibration_{model}", "boost_sweep", "ablation"):
        (tmp_path / "paper/figures").mkdir(exist_ok=True)
        (tmp_path / f"paper/figures/{name}.svg").write_text(SVG)
    numbers.write_numbers("esr", {model: {"unsteered": condition(0.0, 88.0), "steered": condition(1 / 12, 31.0)}})
    entropies = {"cross_entropy_clean": 1.2, "cross_entropy_spliced": 1.3, "cross_entropy_zeroed": 9.0}
    sae = {
        "explained_variance": 0.84,
        "l0": 31.7,
        "dead_fraction": 0.078,
        "layer": 17,
        "d_sae": 4608,
        "tokens": 1650000,
        "unique_tokens": 1650000,
    }
    numbers.write_numbers("sae", {model: sae | entropies})
    drawn = {"drawn": 120, "kept": 32, "fires_on_a_prompt": 50, "label_not_concrete": 25, "too_rare": 8, "too_dense": 5}
    numbers.write_numbers("latents", {model: drawn})
    boost = {"median": 0.45, "lower_quartile": 0.37, "upper_quartile": 0.53}
    calibration = {"n_candidates": 40, "n_latents": 32, "n_converged": 28, "target": 30.0, "boost": boost}
    numbers.write_numbers("calibrate", {model: calibration | {"first_attempt_score": estimate(31.0, 28.0, 34.0)}})
    relevance = {"spearman": 0.8, "matched_auc": 0.985, "mean_absolute_error": 9.1, "n": 240}
    relevance |= {"labelled": {"n": 400, "mean_absolute_error": 6.1}}
    numbers.write_numbers("relevance", {model: relevance})
    both = {"unsteered": condition(0.0, 88.0), "steered": condition(1 / 12, 31.0)}
    numbers.write_numbers("finetune", {model: {"ratios": {"0.1": both, f"{CHOSEN:g}": both}}})
    offsets = [
        {"boost_sd": offset, **condition(multi, 31.0)} for offset, multi in ((-3.0, 0.0), (0.5, 0.2), (3.0, 0.1))
    ]
    numbers.write_numbers("boost_sweep", {model: {"boosts": offsets, "middle_minus_ends": estimate(0.1, 0.0, 0.2)}})
    prompted = condition(1 / 12, 31.0) | {"paired_difference": estimate(-0.02, -0.1, 0.06), "p_value": 0.5}
    numbers.write_numbers("meta_prompts", {model: {"monitor_yourself": prompted}})
    found = {"rule": "auc", "n_detectors": 26, "median_auc": 0.7, "chance_auc": 0.6}
    found |= {"rules": {"strict": {"qualify": 1}}}
    numbers.write_numbers("detectors", {model: found})
    lost = prompted | {"relative_reduction": estimate(0.4, -0.1, 0.7), "n_pairs": 24}
    lost |= {"score_difference": estimate(-20.0, -25.0, -15.0)}
    every = {"steered": prompted, "detectors": lost, "held_out": lost, "random": lost | {"relative_reduction": NOTHING}}
    every["sham"] = prompted | {"changed_share": estimate(0.0, 0.0, 0.1)}
    numbers.write_numbers("ablate", {model: every | {"minimum_detectable_reduction": 0.45}})
    course = {name: estimate(2.0, 1.5, 2.5) for name in ("off_topic_ratio", "after_ratio")}
    numbers.write_numbers("activations", {model: course | {"never_restarted_ratio": NOTHING, "episodes": 1}})
    detection = {name: condition(0.2, 40.0) for name in ("live", "prefilled", "on_topic", "foreign")}
    numbers.write_numbers("controls", {model: {"detection": detection, "sustained": {}}})
    names = ("restart_precision", "restart_recall", "multi_attempt_precision", "multi_attempt_recall", "score_spearman")
    judged = {"n": 134, "direction_kappa": 0.4, "score_error": estimate(5.0, 4.0, 6.0)}
    judged |= {name: estimate(0.8, 0.7, 0.9) for name in names}
    measured = dict.fromkeys(("test", "other_model", "annotators"), judged)
    numbers.write_numbers("judge", measured | {"sample_unsteered_false_restarts": estimate(0.002, 0.0, 0.006, 1200)})
    numbers.write_numbers("power", {"assumed": {"power": 0.8}})
    claim = {"experiment": "3b", "hypothesis": "Restarts fall", "unit": "%", "verdict": "reproduced"}
    claim |= {"failed_checks": [], "model": model, "about": "mechanism"}
    rows = [
        claim | {"published": 0.25, "measured": estimate(0.4, -0.1, 0.7), "n": 24},
        claim | {"published": None, "measured": None, "n": None, "unit": "x", "model": None},
        claim | {"published": 3.0, "measured": NOTHING, "n": 0, "unit": "", "failed_checks": ["sham"]},
    ]
    numbers.write_numbers("claims", rows)
    return tmp_path


def test_compiles_to_the_same_bytes_twice(root):
    target = paper.compile_paper()
    first = target.read_bytes()
    target.unlink()
    assert paper.compile_paper().read_bytes() == first
    assert first.startswith(b"%PDF") and target == root / "paper/paper.pdf"


def test_a_measured_number_moves_the_paper(root):
    before = paper.compile_paper().read_bytes()
    esr = numbers.read_numbers("esr")
    steered = esr["smollm2-135m"]["steered"]
    steered["esr_rate"] = replace(steered["esr_rate"], estimate=0.111)
    numbers.write_numbers("esr", esr)
    assert paper.compile_paper().read_bytes() != before


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("esr", ("smollm2-135m", "steered", "esr_rate")),
        ("esr", ("smollm2-135m", "unsteered", "first_attempt_score", "low")),
        ("sae", ("smollm2-135m", "explained_variance")),
        ("calibrate", ("smollm2-135m", "boost", "median")),
        ("latents", ("smollm2-135m", "too_rare")),
        ("relevance", ("smollm2-135m", "matched_auc")),
        ("ablate", ("smollm2-135m", "detectors", "relative_reduction")),
        ("controls", ("smollm2-135m", "detection", "on_topic")),
        ("judge", ("test", "restart_recall")),
    ],
)
def test_a_missing_number_stops_it_and_keeps_the_old_pdf(root, name, keys):
    old = paper.compile_paper().read_bytes()
    content = json.loads((root / f"paper/numbers/{name}.json").read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    numbers.write_numbers(name, content)
    with pytest.raises(paper.PaperError, match=f'does not contain key "{keys[-1]}".*paper.typ:'):
        paper.compile_paper()
    assert (root / "paper/paper.pdf").read_bytes() == old


def test_a_missing_published_number_stops_it(root):
    path = root / "data/published.json"
    published = json.loads(path.read_text())
    del published["models"]["gemma-2-9b"]["esr_rate"]
    path.write_text(json.dumps(published))
    with pytest.raises(paper.PaperError, match="esr_rate_max"):
        paper.compile_paper()


def test_files_not_there_yet_are_all_named(root, capsys):
    (root / "paper/numbers/sae.json").unlink()
    (root / "paper/figures/esr_by_model.svg").unlink()
    assert paper.main() == 1
    message = capsys.readouterr().err
    assert "figures/esr_by_model.svg, numbers/sae.json" in message and "dvc repro" in message


def test_a_font_typst_does_not_bring_is_an_error(root):
    source = root / "paper/paper.typ"
    source.write_text(source.read_text().replace("Libertinus Serif", "Libertinus Sarif"))
    with pytest.raises(paper.PaperError, match="libertinus sarif.*use Libertinus Serif"):
        paper.compile_paper()


def test_a_citation_without_reference_stops_it(root):
    source = root / "paper/paper.typ"
    source.write_text(source.read_text() + "\n@nobody1900\n")
    with pytest.raises(paper.PaperError, match="nobody1900"):
        paper.compile_paper()


def test_every_reference_is_cited():
    text = (REPOSITORY / "paper/paper.typ").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),", (REPOSITORY / "paper/references.bib").read_text(encoding="utf-8"), re.M)
    assert entries and [entry for entry in entries if f"@{entry}" not in text and f"<{entry}>" not in text] == []


def test_prose_holds_no_figure_typed_by_hand():
    """Decimals and per cents in a line without code would be figures that no file keeps up to date."""
    text = (REPOSITORY / "paper/paper.typ").read_text(encoding="utf-8")
    prose = [line for line in text[text.index("= What is reproduced") :].splitlines() if "#" not in line]
    prose = [line for line in prose if not line.startswith(("    ", "  image("))]  # arguments
    assert [line for line in prose if re.search(r"\d\.\d|\d\s*(%|per cent)", line)] == []


def test_the_paper_stays_where_no_chosen_model_runs_what_it_shows(tmp_path, monkeypatch, capsys):
    study = json.dumps({"study": dict.fromkeys(paper.EXPERIMENTS, {"tiny": {}}) | {"ablate": {}}})
    (tmp_path / "study.yaml").write_text(study)
    monkeypatch.setattr(paper, "STUDY", tmp_path / "study.yaml")
    monkeypatch.setattr(paper, "compile_paper", lambda: pytest.fail("typeset"))
    assert paper.main() == 0
    assert "no chosen model runs (ablate): paper.pdf stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [{"generation": {"batch_size": 3}}, {"scales": {"laptop": {"organism": {}}}}, {}])
def test_the_paper_stays_where_a_chosen_model_has_settings_that_it_prints(tmp_path, monkeypatch, capsys, settings):
    groups = dict.fromkeys([*paper.EXPERIMENTS, "models"], {"tiny": {}})
    (tmp_path / "study.yaml").write_text(json.dumps({"study": groups}))
    typeset = []
    monkeypatch.setattr(paper, "STUDY", tmp_path / "study.yaml")
    monkeypatch.setattr(paper, "model_entry", lambda _model: SimpleNamespace(params=settings))
    monkeypatch.setattr(paper, "compile_paper", lambda: typeset.append(1) or paths.ROOT / "README.md")
    assert paper.main() == 0
    assert ("tiny has its own" in capsys.readouterr().out) == bool(settings) == (not typeset)
