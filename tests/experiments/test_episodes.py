"""Regions are exact to the token, also where characters span tokens; statistics on hand-made courses."""

import numpy as np
import pandas as pd
import pytest
from conftest import ListedRestarts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from esr.experiments import episodes
from esr.experiments.episodes import aligned, region_rows, regions
from esr.judging.offline import split_attempts
from esr.models.alignment import Alignment, align
from esr.models.loading import load_tokenizer
from esr.paths import data_dir
from esr.statistics.estimates import NOTHING
from esr.storage.records import Attempt, Judgement, Trial

INTERVAL = {"confidence": 0.95, "n_bootstrap": 200, "seed": 0}
RESTART = "Wait, that's not right. Let me start over."
PLAIN = f"Bread rises slowly in the warm kitchen by the sea. {RESTART} Fold the paper in half, then unfold it again."
MIXED = f"Brot 🥖 und 海 naïve 👩‍🍳! ☕ {RESTART} 折り紙 is a quiet craft for everyone 🎉."


def find_restarts(text):
    return ListedRestarts().find([""], [text])[0]


def bytewise():
    """A byte-level tokenizer without merges: every character outside ASCII takes several tokens."""
    words = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def embedded():
    if not (data_dir("fetch", "smollm2-135m") / "tokenizer.json").exists():
        pytest.skip("no tokenizer in data/fetch: run the stage fetch")
    return load_tokenizer("smollm2-135m")


def judged(text):
    attempts = [
        Attempt(start=a, end=b, restart=phrase, score=1.0)
        for a, b, phrase, _ in split_attempts(text, find_restarts(text))
    ]
    return Judgement(
        trial_id="t", model="m", condition="steered", latent=1, prompt_id="p", seed=0, judge="j", outcome="scored",
        attempts=attempts, degraded=False,
    )  # fmt: skip


@pytest.mark.parametrize("text", [PLAIN, MIXED])
@pytest.mark.parametrize("make", [bytewise, embedded])
def test_regions_cut_the_text_exactly_at_the_restart(text, make):
    tokenizer, [restart] = make(), find_restarts(text)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    names = regions(align(tokens, tokenizer), judged(text))
    found = {
        name: tokenizer.decode([t for t, region in zip(tokens, names, strict=True) if region == name]).strip()
        for name in episodes.REGIONS
    }
    assert found == {
        "off_topic": text[: restart.start].strip(),
        "restart": restart.phrase.strip(),
        "after": text[restart.end :].strip(),
    }


def test_what_follows_a_third_attempt_is_later_and_one_attempt_is_whole():
    alignment = Alignment("abcdef", tuple(range(7)))
    attempts = [Attempt(start=a, end=b, restart=r, score=1.0) for a, b, r in ((0, 2, ""), (2, 4, "c"), (4, 6, "e"))]
    judgement = judged(PLAIN).model_copy(update={"attempts": attempts})
    assert regions(alignment, judgement) == ["off_topic"] * 2 + ["restart", "after"] + ["later"] * 2
    assert regions(alignment, judgement.model_copy(update={"attempts": attempts[:1]})) == ["whole"] * 6


def test_bins_meet_at_the_restart_whatever_the_lengths():
    names = ["off_topic"] * 30 + ["restart"] * 2 + ["after"] * 3
    curve = aligned(np.r_[np.full(30, 5.0), np.full(5, 1.0)], names, 50)
    assert curve.shape == (50,) and np.allclose(curve[:25], 5) and np.allclose(curve[25:], 1)
    ramp = aligned(np.arange(8.0), ["off_topic"] * 4 + ["after"] * 4, 4)
    assert ramp.tolist() == [0.5, 2.5, 4.5, 6.5]
    assert aligned(np.ones(3), ["whole"] * 3, 4) is None


def trial(i, latent):
    return Trial(
        id=str(i), model="m", condition="steered", latent=latent, label="", prompt_id=f"p{i % 5}", prompt="", seed=0,
        boost=0.5, layer=17, max_new_tokens=4, temperature=0.6, repetition_penalty=1.1, tokens=[5], text="",
        finish_reason="stop",
    )  # fmt: skip


def rows(off_topic, kind="episode", n=12):
    """Responses of four tokens with two detectors: the first at `off_topic` there and 1 otherwise, the second at 1."""
    draw, found = np.random.default_rng(0), []
    names = ["off_topic", "off_topic", "restart", "after"] if kind == "episode" else ["whole"] * 4
    for i in range(n):
        activations = 1 + 0.1 * draw.random((4, 2))
        activations[:2, 0] *= off_topic
        found += region_rows(kind, trial(i + 100 * len(kind), i % 6), activations, names)
    return found


def test_ratios_are_to_unsteered_responses_with_never_restarting_ones_beside():
    frame = pd.DataFrame([*rows(5.0), *rows(1.0, "baseline"), *rows(3.0, "never_restarted")], columns=episodes.COLUMNS)
    curves = pd.DataFrame(
        {"latent": [1, 1, 2], "curve": [np.array([3.0, 1.0]), np.array([5.0, 1.0]), np.array([7.0, 1.0])]}
    )
    summary = episodes.summarize(frame, curves, [7, 9], **INTERVAL)
    assert (summary["episodes"], summary["baselines"], summary["never_restarted"]) == (12, 12, 12)
    assert summary["off_topic_ratio"].estimate == pytest.approx(3.0, rel=0.05)
    assert summary["after_ratio"].estimate == pytest.approx(1.0, rel=0.05)
    assert summary["never_restarted_ratio"].estimate == pytest.approx(1.5, rel=0.05)
    assert summary["off_topic_to_never_ratio"].estimate == pytest.approx(2.0, rel=0.05)
    assert summary["off_topic_ratio"].low > 2.8 and summary["off_topic_ratio"].n == 24
    assert [b.estimate for b in summary["bins"]] == [5.0, 1.0] and summary["bins"][0].low < 5
    assert summary["decrease"].estimate == pytest.approx(2.0, rel=0.05) and summary["decrease"].low > 1.8
    assert summary["decrease"].n == 12
    assert summary["episodes_minus_never"].estimate == pytest.approx(1.05 * (3.0 - 1.5), rel=0.05)
    first, second = summary["latents"]
    assert (first["latent"], first["n"]) == (7, 12) and first["cohens_d"] > 5 and first["p_value_holm"] < 0.01
    assert first["p_value"] == pytest.approx(2 / 2**12)  # all twelve differences of one sign
    assert second["latent"] == 9 and abs(second["cohens_d"]) < 1 and second["p_value_holm"] > 0.05


def test_an_unsteered_response_that_restarts_is_one_response_and_no_episode():
    names = ["off_topic", "off_topic", "restart", "after"]
    activations = np.arange(8.0).reshape(4, 2)
    (row,) = region_rows("baseline", trial(1, 2), activations, names)
    assert row["region"] == "whole" and row["means"].tolist() == [3.0, 4.0]


def test_without_episodes_all_is_null_and_counted():
    frame = pd.DataFrame([*rows(1.0, "baseline"), *rows(2.0, "never_restarted")], columns=episodes.COLUMNS)
    nothing = pd.DataFrame([], columns=["latent", "curve"])
    summary = episodes.summarize(frame, nothing, [7, 9], **INTERVAL)
    assert summary["episodes"] == 0 and summary["bins"] == [] and summary["off_topic_ratio"].estimate is None
    assert summary["decrease"].estimate is None and summary["episodes_minus_never"].estimate is None
    assert summary["never_restarted_ratio"].estimate == pytest.approx(1.25, rel=0.05)
    assert summary["latents"][0] == {
        "latent": 7, "off_topic": None, "after": None, "cohens_d": None, "p_value": None, "p_value_holm": None, "n": 0,
    }  # fmt: skip
    empty = episodes.summarize(pd.DataFrame([], columns=episodes.COLUMNS), nothing, [7], **INTERVAL)
    assert empty["baselines"] == 0 and empty["off_topic_ratio"] == NOTHING
