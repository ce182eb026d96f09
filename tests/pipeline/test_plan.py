"""The plan counts what the notebooks generate: beside the committed results, and by hand for a small study."""

import json
from types import SimpleNamespace

import pytest
import yaml
from ruamel.yaml import YAML

from esr.config import stages
from esr.paths import ROOT
from esr.pipeline import cli, plan, sizes
from esr.pipeline.sizes import DOCUMENTS, TRAINED, TRIALS, parameters, sizes_of

BASE, TUNED = "smollm2-135m", "smollm2-135m-selfcorrect"
NUMBERS = {file.stem: json.loads(file.read_text()) for file in (ROOT / "paper" / "numbers").glob("*.json")}


def planned(stage: str, model: str) -> int:
    return sum(n for n, _ in TRIALS[stage](sizes_of(model)))


def n_of(*keys: str) -> int:
    value = NUMBERS
    for key in keys:
        value = value[key]
    return value["esr_rate"]["n"]


@pytest.fixture
def committed_sizes(tmp_path, monkeypatch):
    """Sizes of scale laptop that made the committed numbers, from dvc.lock: those of params.yaml may be others."""
    params = YAML(typ="safe", pure=True).load(stages.PARAMS)
    for name, stage in yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"].items():
        for key, values in stage.get("params", {}).get("params.yaml", {}).items():
            section = key.removeprefix("scales.laptop.")
            if section != key and name.partition("@")[0] != "finetune":  # its sizes have other names today
                params["scales"]["laptop"][section] = values
    copy = tmp_path / "params.yaml"
    YAML().dump(params, copy)
    monkeypatch.setattr(stages, "PARAMS", copy)
    sizes.parameters.cache_clear()
    yield
    sizes.parameters.cache_clear()


@pytest.fixture(scope="module")
def converged() -> dict[str, int]:
    return {model: NUMBERS["calibrate"][model]["n_converged"] for model in (BASE, TUNED)}


def test_responses_are_those_of_the_committed_results(converged, committed_sizes):
    """Exactly, where every latent converged; else by the share that did, 30 of 32 latents."""
    share = converged[TUNED] / sizes_of(TUNED).n_latents
    assert share == 30 / 32
    measured = {
        ("steer", BASE): sum(n_of("esr", BASE, name) for name in ("unsteered", "steered")),
        ("steer", TUNED): sum(n_of("esr", TUNED, name) for name in ("unsteered", "steered")) / share,
        ("boost_sweep", TUNED): sum(row["esr_rate"]["n"] for row in NUMBERS["boost_sweep"][TUNED]["boosts"]) / share,
        ("meta_prompts", TUNED): sum(
            n_of("meta_prompts", TUNED, name) for name in NUMBERS["meta_prompts"][TUNED] if name != "plain"
        ) / share,
        ("ablate", TUNED): sum(
            n_of("ablate", TUNED, name)
            for name in ("detectors", "random_1", "random_2", "random_3", "sham", "held_out")
        ) / share,
    }  # fmt: skip
    assert measured == {key: planned(*key) for key in measured}


def test_limits_are_not_exceeded_by_the_committed_results(committed_sizes):
    """Openings and restarts are found, not planned: 150 of 150 openings, 34 of 320 restarts with text after them."""
    detection = NUMBERS["controls"][TUNED]["detection"]
    generated = sum(rates["esr_rate"]["n"] for name, rates in detection.items() if name != "live")
    generated += NUMBERS["controls"][TUNED]["sustained"]["prefilled_on_topic"]["0-32"]["n"]
    assert generated == 934 and planned("controls", TUNED) == 1220
    p = parameters("finetune")
    evaluated = 32 * 2 * (p.n_prompts + p.n_unsteered)  # two ratios; no training of an organism is shipped
    texts = 2 * 251 + p.n_corpus_openings  # prompts of data/prompts/finetune.txt
    assert planned("finetune", BASE) == evaluated + 7 * p.n_prefills + texts
    assert DOCUMENTS["detectors"](sizes_of(TUNED)) == 456 + 160  # 449 distinct pairs were read


def test_the_share_of_a_shipped_organism_is_measured_and_not_trained(monkeypatch):
    p, limit = sizes_of(BASE)["finetune"], parameters("steer").max_new_tokens
    both = TRAINED["finetune"](sizes_of(BASE))
    monkeypatch.setattr(sizes, "has_organism", lambda base: base == BASE)
    assert TRAINED["finetune"](sizes_of(BASE)) == both / 2 > 0
    evaluated = (1 + p.n_trainings) * (p.n_prompts + p.n_unsteered) + p.n_trainings * p.n_prompts
    assert TRIALS["finetune"](sizes_of(BASE))[0] == (32 * evaluated + 7 * p.n_prefills, limit)
    monkeypatch.setattr(p, "ratios", [p.ratio])
    assert TRAINED["finetune"](sizes_of(BASE)) == 0 and len(TRIALS["finetune"](sizes_of(BASE))) == 1


def test_a_shipped_corpus_is_not_generated():
    assert planned("corpus", BASE) == 0


def test_stages_are_those_that_run():
    found = plan.stages_of([BASE, TUNED])
    assert ("finetune", BASE) in found and ("finetune", TUNED) not in found
    assert ("ablate", TUNED) in found and ("ablate", BASE) not in found
    assert ("sae", BASE) in found and ("sae", TUNED) not in found
    assert ("measure", "") in found
    # The SAE is shipped, no organism is, and a model with an SAE needs no concepts.
    assert [name for name, _ in found if name in ("train_sae", "organism", "concepts")] == []


def test_hours_follow_the_stated_speed_and_the_measured_one():
    slow, fast = (plan.costs([BASE], speed) for speed in (100.0, 1000.0))
    hours = [next(cost.hours for cost in found if cost.stage == "steer") for found in (slow, fast)]
    limit = parameters("steer").max_new_tokens
    assert hours[0] - hours[1] == pytest.approx(640 * limit * (1 / 100 - 1 / 1000) / 3600)
    measured = next(cost.hours for cost in plan.costs([BASE]) if cost.stage == "steer")
    speed = NUMBERS["bench"]["tokens_per_second"]["engine"]
    assert measured == pytest.approx((640 * limit / speed + plan.START_S) / 3600)


def test_what_is_not_fetched_is_unknown(monkeypatch):
    """Another model than the measured one: no parameters, so no hours."""
    monkeypatch.setattr(plan, "_bench", lambda: NUMBERS["bench"] | {"machine": {"model": "another"}})
    monkeypatch.setattr(plan, "data_dir", lambda *_: ROOT / "data" / "none")
    (cost,) = plan.costs([BASE], changed={f"steer@{BASE}"})
    assert (cost.trials, cost.weights, cost.cache, cost.hours) == (640, None, None, None)
    assert plan.is_longer([cost], 10**9)
    assert plan.rows([cost])[1][4:7] == ("?", "?", "?")


def test_language_models_as_judges_cost_by_their_prices(monkeypatch):
    judge = {"name": "mini", "model": "openai/gpt-4o-mini", "usd_per_million_input": 1.0, "usd_per_million_output": 0.0}
    limit = parameters("steer").max_new_tokens
    monkeypatch.setattr(plan, "parameters", lambda stage: SimpleNamespace(judges=[judge]))
    costs = plan.costs([BASE], 1000.0, changed={f"judge@{BASE}", "cross_judge"})
    by_stage = {cost.stage: cost.usd for cost in costs}
    tokens = len(plan.RUBRIC.encode()) // plan.BYTES_PER_TOKEN + plan.PROMPT_TOKENS + limit
    assert by_stage == {"judge": pytest.approx(640 * tokens / 1e6), "cross_judge": 0}  # its replies are shipped
    monkeypatch.setitem(judge, "usd_per_million_input", None)
    assert plan.costs([BASE], 1000.0, changed={f"judge@{BASE}"})[0].usd is None


def test_the_command_is_silent_about_short_runs(capsys):
    cli.main(["plan", BASE, "--tokens-per-second", "1e9", "--over", "15"])
    assert capsys.readouterr().out == ""
    cli.main(["plan", BASE, "--tokens-per-second", "10", "--over", "15"])
    text = capsys.readouterr().out
    assert text.splitlines()[0].split()[:4] == ["stage", "model", "trials", "tokens"]
    assert "total" in text and "Hours at 10 tokens a second" in text


def test_another_scale_is_planned_without_a_change_of_params_yaml():
    paper = next(cost for cost in plan.costs([BASE], 1000.0, scale="paper") if cost.stage == "steer")
    assert paper.trials == 60 * 38 * 2 * 2 and paper.tokens == paper.trials * 512
    assert next(cost for cost in plan.costs([BASE], 1000.0) if cost.stage == "steer").trials == 640
    with pytest.raises(ValueError, match="Unknown scale 'papre'.*did you mean 'paper'"):
        plan.costs([BASE], scale="papre")


def test_hosts_get_their_command_their_hours_and_a_price(capsys):
    cli.main(["plan", BASE, "--scale", "paper", "--tokens-per-second", "1000", "--hosts", "8", "--usd-per-hour", "10"])
    text = capsys.readouterr().out
    (cost,) = [c for c in plan.costs([BASE], 1000.0, scale="paper") if c.stage == "steer"]
    assert f"{cost.hours / 8:.2f}  python -m esr.pipeline.run steer --model {BASE} --shard I/8 --wait 3600" in text
    assert "dollars at 10 a host and hour" in text and "judge --model" not in text
