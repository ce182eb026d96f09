import json
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

from esr import paths
from esr.reporting import figures
from esr.statistics import metrics
from esr.statistics.estimates import NOTHING, Estimate
from esr.storage.records import Attempt, Judgement, Query, Trial

PUBLISHED = json.loads((paths.ROOT / "data" / "published.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    rows = [
        {
            "model": "tiny",
            "condition": condition,
            "latent": latent,
            "prompt_id": f"evaluation-{prompt:02d}",
            "seed": prompt,
            "outcome": "scored",
            "attempts": 2 if condition == "steered" and latent == 0 else 1,
            "first_score": float(rng.uniform(low, low + 30)),
            "last_score": float(rng.uniform(low, low + 30)),
            "degraded": False,
            "unverified": 0,
        }
        for condition, low in (("unsteered", 70), ("steered", 15))
        for latent in range(6)
        for prompt in range(4)
    ]
    return pd.DataFrame(rows, columns=metrics.COLUMNS)


@pytest.fixture(scope="module")
def esr(frame):
    return metrics.summaries(frame, n_bootstrap=200)


@pytest.fixture
def thresholds():
    rows = [
        {
            "latent": latent,
            "label": "a label that is far too long for a tick" if latent else "",
            "boost": 0.3 + 0.05 * latent,
            "sd": 0.03,
            "score": 25.0 + latent,
            "converged": latent != 2,
            "queries": [Query(boost=0.2, score=80.0, n=4), {"boost": 0.5, "score": 10.0, "n": 4}],
        }
        for latent in range(5)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def history():
    rows = [
        {"layer": layer, "tokens": tokens, "explained_variance": 0.8 + layer / 1000, "dead_fraction": 0.1}
        for layer in (15, 17)
        for tokens in (1e5, 1e6, 2e6)
    ]
    return pd.DataFrame(rows)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def points(ax) -> list[float]:
    """Where the dots of an axes are."""
    return [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]


def test_esr_by_model_shows_measured_beside_published(esr):
    figure = figures.esr_by_model(esr, PUBLISHED)
    multi_attempt, esr_rate = figure.axes
    assert points(multi_attempt) == [0.0, pytest.approx(4 / 24), 0.074, 0.011, 0.01, 0.001, 0.0]
    assert points(esr_rate)[2:] == [0.038, 0.007, 0.005, 0.001, 0.0]
    labels = [tick.get_text() for tick in multi_attempt.get_yticklabels()]
    assert labels[:3] == ["tiny, unsteered", "tiny, steered", "Llama-3.3-70B-Instruct"]
    assert "all five, unsteered" in labels and len(labels) == len(set(labels)) == 8


def test_rates_that_differ_by_orders_of_magnitude_are_apart(esr):
    figure = figures.esr_by_model(esr, PUBLISHED)
    ax = figure.axes[0]
    places = [ax.transData.transform((rate, 0))[0] for rate in (0.0, 0.001, 0.01, 0.074)]
    assert min(np.diff(places)) > 0.1 * ax.bbox.width


def test_first_attempt_scores_draws_the_means_and_the_published_bands(frame, esr):
    figure = figures.first_attempt_scores(frame, esr, PUBLISHED)
    (ax,) = figure.axes
    expected = [esr["tiny"][c]["first_attempt_score"].estimate for c in ("unsteered", "steered")]
    assert points(ax) == pytest.approx(expected)
    shown = " ".join(texts(figure))
    assert "87.8\u201391.8" in shown and "26.3" in shown and "steered (n = 24)" in shown


def test_unscored_trials_are_not_drawn(frame, esr):
    broken = frame.copy()
    broken.loc[0, ["outcome", "first_score"]] = ["run_error", 0.0]
    figure = figures.first_attempt_scores(broken, esr, PUBLISHED)
    assert min(patch.get_data().values[0] for patch in figure.axes[0].patches[:1]) == 0.0


def test_conditions_without_any_score_can_be_drawn(frame):
    nothing = frame.assign(outcome="run_error")
    esr = metrics.summaries(nothing)
    assert figures.first_attempt_scores(nothing, esr, PUBLISHED).axes
    assert figures.esr_by_model(esr, PUBLISHED).axes


def test_calibration_marks_what_was_left_out(thresholds):
    figure = figures.calibration(thresholds, target=30.0)
    shown = texts(figure)
    assert {"converged (4)", "left out (1)", "target 30", "latent 0"} <= set(shown)
    ticks = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert ticks[1].endswith("\u2026") and max(map(len, ticks)) <= 26


def test_calibration_of_many_latents_stays_on_a_page(thresholds):
    many = pd.concat([thresholds] * 100, ignore_index=True)
    assert figures.calibration(many, target=30.0).get_figheight() <= 6


def test_sae_training_names_the_chosen_layer(history):
    figure = figures.sae_training(history, chosen=17)
    assert {"layer 15", "layer 17 (used)"} <= set(texts(figure))


def test_saved_bytes_are_stable_and_undated(esr, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    first = figures.save(figures.esr_by_model(esr, PUBLISHED), "one").read_bytes()
    second = figures.save(figures.esr_by_model(esr, PUBLISHED), "two").read_bytes()
    assert first == second and b"<dc:date>" not in first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "two.svg"]


def test_nothing_that_measures_or_draws_imports_torch():
    modules = "esr.statistics.metrics, esr.statistics.intervals, esr.reporting.figures, esr.reporting.tables"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.ROOT)


def rates(multi, score, n=40):
    def known(x):
        return Estimate(x, 0.5 * x, 1.2 * x, n)

    improvement = known(0.6) if multi else NOTHING
    return {
        "multi_attempt_rate": known(multi), "esr_rate": known(multi / 2), "improvement_rate": improvement,
        "first_attempt_score": known(score),
    }  # fmt: skip


def lines(ax, label):
    return [line for line in ax.get_lines() if line.get_label() == label]


def test_the_boost_sweep_draws_each_model_and_leaves_out_what_is_unknown():
    offsets = [{"boost_sd": x, **rates(multi, 60 - 10 * x)} for x, multi in ((-3.0, 0.0), (0.0, 0.2), (3.0, 0.1))]
    entry = {"boosts": offsets, "middle_minus_ends": NOTHING}
    figure = figures.boost_sweep({"small": entry, "large": entry}, PUBLISHED)
    multi, _, improvement, score = figure.axes
    assert lines(multi, "small")[0].get_ydata().tolist() == [0.0, 0.2, 0.1]
    assert lines(improvement, "large")[0].get_xdata().tolist() == [0.0, 3.0]
    assert lines(score, "small")[0].get_ydata().tolist() == [90, 60, 30]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small", "large", "published peak (70B)"]


def test_meta_prompts_have_a_row_each_and_the_published_rate():
    by_prompt = {name: rates(0.1, 30) for name in ("plain", "stay_focused", "monitor_yourself")}
    figure = figures.meta_prompts({"small": by_prompt}, PUBLISHED)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        "plain",
        "stay focused",
        "monitor yourself",
    ]
    (mark,) = lines(figure.axes[0], "published (70B)")
    assert mark.get_xdata()[0] == PUBLISHED["meta_prompt"]["multi_attempt_rate"]


def test_finetuning_draws_both_conditions_by_ratio():
    by_ratio = {r: {"unsteered": rates(0.0, 90), "steered": rates(m, 40)} for r, m in (("0.1", 0.0), ("0.9", 0.5))}
    figure = figures.finetuning(by_ratio, PUBLISHED)
    assert lines(figure.axes[0], "steered")[0].get_xdata().tolist() == [0.1, 0.9]
    assert lines(figure.axes[2], "unsteered")[0].get_ydata().tolist() == [90, 90]


def test_learning_curves_are_one_line_a_ratio():
    steps = [type("Step", (), {"step": i, "loss": 3.0 / i})() for i in range(1, 21)]
    figure = figures.learning_curves({"0.1": steps, "0.5": steps})
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["10%", "50%"]


def result(estimate, low=None, high=None, n=100):
    return Estimate(estimate, low, high, n)


def test_ablation_shows_conditions_with_their_differences_above_the_published_ones():
    rates = {
        "tiny": {
            "steered": {"multi_attempt_rate": result(0.2, 0.1, 0.3)},
            "detectors": {"multi_attempt_rate": result(0.1, 0.05, 0.2), "difference": result(-0.1, -0.2, 0.0)},
            "random_1": {"multi_attempt_rate": result(0.21, 0.1, 0.3), "difference": result(0.01, -0.05, 0.07)},
        }
    }
    figure = figures.ablation(rates, PUBLISHED)
    left, right = figure.axes
    assert points(left) == [0.2, 0.1, 0.21, 0.074, 0.055, 0.079]
    assert points(right) == [-0.1, 0.01]
    diamonds = [float(line.get_xdata()[0]) for line in right.lines if line.get_marker() == "D"]
    assert diamonds == [pytest.approx(-0.019), pytest.approx(0.005)]
    assert [tick.get_text() for tick in left.get_yticklabels()][1:4] == [
        "tiny, detectors", "tiny, random 1", "published, steered",
    ]  # fmt: skip


def test_detectors_stand_out_from_the_others_and_from_chance():
    rng = np.random.default_rng(0)
    latents = pd.DataFrame(rng.uniform(0, 5, (40, 2)), columns=["matched_mean", "mismatched_mean"])
    latents["auc"], latents["kind"] = rng.uniform(0.3, 0.9, 40), ["detector"] * 3 + ["steered"] * 2 + ["other"] * 35
    figure = figures.detectors(latents, chance=0.61)
    assert {"detector (3)", "steered (2)", "other (35)", "best by chance "} <= set(texts(figure))
    right = figure.axes[1]
    shown = sorted((float(y) for line in right.lines[:3] for y in line.get_ydata()), reverse=True)
    assert shown == pytest.approx(sorted(latents.auc, reverse=True))


def test_activations_draw_a_course_where_there_are_episodes_and_say_where_not():
    nothing = result(None, n=0)
    numbers = {
        "tiny": {
            "episodes": 7, "bins": [result(4.0, 3.0, 5.0), result(1.0, 0.5, 1.5)],
            "off_topic_ratio": result(4.0, 3.0, 5.0), "after_ratio": result(1.2, 1.0, 1.5),
            "never_restarted_ratio": result(3.9, 3.0, 5.0),
            "baseline_mean": result(1.0), "never_restarted_mean": result(3.9),
        },
        "base": {
            "episodes": 0, "bins": [], "off_topic_ratio": nothing, "after_ratio": nothing,
            "never_restarted_ratio": result(2.0, 1.0, 3.0),
            "baseline_mean": result(1.0), "never_restarted_mean": nothing,
        },
    }  # fmt: skip
    figure = figures.activations(numbers, PUBLISHED)
    left, right = figure.axes
    assert {"tiny (7 episodes)", "base (0 episodes)"} <= set(texts(figure))
    assert left.lines[0].get_ydata().tolist() == [4.0, 1.0] and len(left.collections) == 1
    assert points(right) == [4.0, 1.2, 3.9, 2.0]


def test_controls_and_power_show_every_condition_and_model_and_survive_nulls():
    some = Estimate(0.2, 0.1, 0.4, 30)
    names = ("live", "prefilled", "on_topic")
    rates = {
        "detection": {c: {"multi_attempt_rate": some, "silent_on_topic_rate": NOTHING} for c in names},
        "sustained": {c: {"0-32": NOTHING, "32-64": NOTHING} for c in ("after_restart", "matched_difference")},
    }
    left, right = figures.controls(rates).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["live", "prefilled", "on topic"]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["after restart"]
    curves = {"a, 20 %": {"trials": [10, 100], "power": [0.1, 0.9], "measured": True},
              "b, 1 %": {"trials": [10, 100], "power": [0.0, 0.1], "measured": False}}  # fmt: skip
    (ax,) = figures.power_curves(curves, 0.8).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(curves)


def test_judge_calibration_draws_every_judge_over_the_diagonal():
    rows = [{"annotators": 10.0, "judge": 40.0, "n": 13}, {"annotators": 80.0, "judge": 90.0, "n": 13}]
    (ax,) = figures.judge_calibration({"offline": rows, "mini": rows[:1]}).axes
    assert lines(ax, "offline")[0].get_ydata().tolist() == [40.0, 90.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["offline", "mini"]


def judged(trial_id: str, *scores: float):
    """A response of one sentence an attempt, and its judgement."""
    sentences = [
        "The sea is wide. ",
        *["Wait, let me start over. To peel a carrot, draw the blade. "] * (len(scores) - 1),
    ]
    starts = [sum(map(len, sentences[:n])) for n in range(len(sentences) + 1)]
    key = {"model": "tiny", "condition": "steered", "latent": 3, "prompt_id": "evaluation-00", "seed": 1}
    attempts = [
        Attempt(start=a, end=b, restart="Wait, let me start over." if n else "", score=score)
        for n, (a, b, score) in enumerate(zip(starts, starts[1:], scores, strict=False))
    ]
    trial = Trial(
        id=trial_id, label="ocean", prompt="How do I peel a carrot?", boost=0.3, layer=1, max_new_tokens=64,
        temperature=0.6, repetition_penalty=1.0, tokens=[], text="".join(sentences), finish_reason="stop", **key,
    )  # fmt: skip
    return trial, Judgement(
        trial_id=trial_id, judge="offline", outcome="scored", attempts=attempts, degraded=False, **key
    )


def test_the_example_is_the_median_of_the_responses_that_improve():
    gains = {"worse": (40, 10), "small": (10, 15), "middle": (10, 40), "large": (10, 90), "one attempt": (95,)}
    pairs = [judged(name, *scores) for name, scores in gains.items()]
    assert figures.median_improvement(pairs)[0].id == "middle"
    assert figures.median_improvement(pairs[:1] + pairs[-1:]) is None


def test_the_example_shows_every_word_and_score_and_marks_the_restart():
    figure = figures.example(*judged("shown", 12, 67))
    texts = {text.get_text(): text for text in figure.texts}
    shown = " ".join(texts)
    words = "How do I peel a carrot? The sea is wide. Wait, let me start over. To draw the blade. 12 67 ocean 0.30"
    for word in words.split():
        assert word in shown
    assert texts["Wait, let me start over."].get_fontweight() == "bold"
    assert texts["The sea is wide."].get_fontweight() == "normal"
