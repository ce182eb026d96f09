"""Bad input is one sentence naming key, value and what is allowed, before anything heavy."""

import json
import re

import pytest
from ruamel.yaml import YAML

from esr.config import registry, stages, study
from esr.config.params import STAGES
from esr.config.registry import check_latents, model_entry
from esr.config.schema import ConfigError
from esr.config.stages import notebook_parameters, stage_parameters
from esr.paths import ROOT
from esr.pipeline.sizes import parameters, sizes_of


@pytest.fixture
def params(tmp_path, monkeypatch):
    """A copy of params.yaml to spoil: `params(old, new)` replaces text in it."""
    copy = tmp_path / "params.yaml"
    copy.write_text(stages.PARAMS.read_text())
    monkeypatch.setattr(stages, "PARAMS", copy)

    def spoil(old, new):
        assert old in copy.read_text()
        copy.write_text(copy.read_text().replace(old, new, 1))

    return spoil


def test_every_stage_at_every_scale_is_complete(params):
    for scale in ("laptop", "smoke", "paper"):
        stages.PARAMS.write_text(stages.PARAMS.read_text().replace("scale: laptop", f"scale: {scale}"))
        for stage in stages.STAGES:
            stage_parameters(stage)
        stages.PARAMS.write_text(stages.PARAMS.read_text().replace(f"scale: {scale}", "scale: laptop"))


MODELS = "models: [smollm2-135m, smollm2-135m-selfcorrect]"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("temperature: 0.6", "temprature: 0.6", "unknown key 'temprature'"),
        ("temperature: 0.6", "temperature: warm", "temperature is 'warm'"),
        ("temperature: 0.6", "temperature: -1.0", "temperature is -1.0; it must be greater than or equal to 0"),
        ("n_prompts: 10, n_seeds: 1", "n_prompts: 8.5, n_seeds: 1", "n_prompts is 8.5"),
        ("n_prompts: 10, n_seeds: 1", "n_prompts: '8', n_seeds: 1", "n_prompts is '8'"),
        ("seed: 2602", "seed: true", "seed is true"),
        ("scale: laptop", "scale: desktop", "scale is 'desktop'; allowed are smoke, laptop, paper"),
        (MODELS, "models: [gpt-9]", "Unknown model 'gpt-9' under models in .*params.yaml"),
        (MODELS, "models: []", "models is empty"),
        (MODELS, "models: [minilm-l6]", "minilm-l6 cannot be steered, as it has no sae or concepts in .*: choose"),
        (
            MODELS,
            "models: [smollm2-135m]",
            "study.yaml is out of date for the models smollm2-135m of .*: run `esr select smollm2-135m`",
        ),
        ("ratio: 0.4", "ratio: 0.5", "ratio is 0.5, which is none of the ratios"),
        ("min_on_topic_score: 35.0", "min_on_topic_score: 15.0", "a text would be both, so make the first the smaller"),
        ("judge:\n", "jugde:\n", "unknown key 'jugde'"),
        ("name: offline", "name: oracle", "name is 'oracle'; it must be 'offline'"),
        ("seed: 2602", "seed: [", "not valid YAML"),
        ("judges: []", "judges: [{name: a}]", "judges.0: a judge is a model of a provider"),
        ("max_tokens: 96", "max_tokens: 16", "max_tokens (16) is below"),
        (
            "windows: [[0, 32], [32, 64]",
            "windows: [[0, 32], [64, 32]",
            r"windows has [64, 32], which holds no token: give",
        ),
        ("judges: []", "judges: [{name: A b, model: openai/m}]", "judges.0.name is 'A b'"),
        ("judges: []", "judges: [{name: a, model: m}]", "judges.0.model is 'm'"),
        ("judges: []", "judges: [{name: a, model: openai/m, api_key: k}]", "judges.0: unknown key 'api_key'; all"),
        ("judges: []", "judges: [{name: a, model: openai/m, max_cost: 1.0}]", "max_cost needs usd_per_million_input"),
        ("judges: []", "judges: [{name: offline, model: openai/m}]", "these are offline, offline"),
    ],
)
def test_mistakes_in_params_are_named(params, old, new, message):
    params(old, new)
    with pytest.raises(ConfigError, match=re.escape(message).replace(r"\.\*", ".*")):
        stage_parameters("steer")


def test_numbers_are_read_as_dvc_reads_them(params):
    params("min_density: 1.0e-5", "min_density: 1e-4")
    assert stage_parameters("latents")["min_density"] == 1e-4


def test_judges_reach_their_notebook_complete(params):
    params("judges: []", "judges: [{name: mini, model: openai/m, temperature: null}]")
    values = stage_parameters("judge")
    (judge,) = notebook_parameters("judge", values).judges
    assert (judge.name, judge.temperature, judge.max_retries, judge.max_cost) == ("mini", None, 5, None)


def test_unknown_stage_and_model():
    with pytest.raises(ConfigError, match="Unknown stage 'stear'"):
        stage_parameters("stear")
    with pytest.raises(ConfigError, match="Unknown model 'smollm'"):
        stage_parameters("steer", "smollm")


def test_notebook_parameters_refuse_words_for_numbers():
    good = stage_parameters("steer")
    assert notebook_parameters("steer", good | {"unrelated": object()}).n_prompts == good["n_prompts"]
    with pytest.raises(ConfigError, match="n_prompts is 'false'"):
        notebook_parameters("steer", good | {"n_prompts": "false"})
    with pytest.raises(ConfigError, match="seed is missing"):
        notebook_parameters("steer", {k: v for k, v in good.items() if k != "seed"})


def test_latents_out_of_range_are_refused():
    check_latents("smollm2-135m", [0, model_entry("smollm2-135m").d_sae - 1])
    with pytest.raises(ConfigError, match="latents 0 to 4607"):
        check_latents("smollm2-135m", [4608])


def test_a_model_without_sae_cannot_be_steered():
    with pytest.raises(ConfigError, match="minilm-l6 cannot be steered, as it has no sae in .*models.yaml: add"):
        check_latents("minilm-l6", [0])


SIZE = {"layer": 17, "d_sae": 4608}


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        ({"kind": "folder", **SIZE}, "sae.path is missing; add it, as a text"),
        (
            {"kind": "release", "release": "r", "id": "", **SIZE},
            "sae.id is empty; give 1 or more",
        ),
        ({"kind": "release", "id": "i", **SIZE}, "sae.release is missing; add it, as a text"),
        ({"kind": "folder", "path": "p", "id": "i", **SIZE}, "sae: unknown key 'id' .*; allowed are layer"),
    ],
)
def test_an_incomplete_sae_is_named(sae, message, tmp_path, monkeypatch):
    entry = YAML(typ="safe", pure=True).load(registry.REGISTRY.read_text())["smollm2-135m"]
    monkeypatch.setattr(registry, "REGISTRY", tmp_path / "models.yaml")
    registry.REGISTRY.write_text(json.dumps({"a": entry | {"sae": sae}}))
    with pytest.raises(ConfigError, match=message):
        model_entry("a")


STEERED = {"source": {"kind": "folder", "path": "m"}, "license": "MIT", "n_layers": 4, "steer_layer": 1}
BOOST = {"min": 0.0, "max": 1.0, "prior_mean": 0.4, "prior_sd": 0.2}
CONCEPTS = {"path": "c", "layer": 1}
SAE = {"kind": "folder", "path": "s", "layer": 2, "d_sae": 64}
READ = SAE | {"layer": STEERED["steer_layer"]}


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """Write a registry with these entries."""
    monkeypatch.setattr(registry, "REGISTRY", tmp_path / "models.yaml")

    def write(**written):
        parameters.cache_clear()
        registry.REGISTRY.write_text(json.dumps(written))

    yield write
    parameters.cache_clear()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sae": SAE}, "it has sae, but no boost, which steering needs: add boost"),
        ({"sae": SAE | {"layer": 4}, "boost": BOOST}, "sae.layer is 4, but n_layers is 4: choose 0 to 3"),
        (
            {"concepts": CONCEPTS | {"layer": 4}, "boost": BOOST},
            "concepts.layer is 4, but n_layers is 4: choose 0 to 3",
        ),
        ({"boost": BOOST | {"max": 0.0}}, "boost.max is 0.0; it must be greater than 0"),
        ({"boost": BOOST | {"min": 2.0}}, r"boost: min \(2\) must be below max \(1\): lower min or"),
        ({"sae": SAE, "concepts": CONCEPTS, "boost": BOOST}, "both sae and concepts"),
        ({"experiments": ["ablate"]}, "experiments has ablate, and it has no sae or concepts to steer with"),
        (
            {"concepts": CONCEPTS, "boost": BOOST, "experiments": ["detectors"]},
            "reads latents of an SAE",
        ),
        (
            {"sae": SAE, "boost": BOOST, "experiments": ["ablate"]},
            "ablate without detectors, which it reads: add detectors",
        ),
        ({"experiments": ["dance"]}, "experiments.0 is 'dance'"),
        ({"source": {"kind": "adapter", "path": "p"}}, "a is an adapter without tuned_from: add"),
        ({"source": []}, "source is empty; give 1 or more, as in `source: {kind: hub"),
        ({"source": [{"kind": "hub", "id": "b"}]}, "a: source.0.id is 'b'; write it as in `id: Qwen"),
        ({"source": {"kind": "hub", "id": "b"}}, "a: source.id is 'b'; write it as in `id: Qwen"),
        ({"sae": 5}, "sae is 5; it must hold keys with values, such as layer, d_sae, kind"),
        ({"tuned_from": "b"}, "a: tuned_from is 'b', which is not the id of another entry"),
        ({"tuned_from": "a"}, "a: tuned_from is 'a', which is not the id of another entry"),
    ],
)
def test_an_entry_that_does_not_fit_together_is_named(entries, fields, message):
    entries(a=STEERED | fields)
    with pytest.raises(ConfigError, match=message):
        model_entry("a")


def test_a_fine_tuned_model_shares_what_its_entry_does_not_say(entries):
    base = STEERED | {"sae": READ, "boost": BOOST, "experiments": ["finetune"], "sampling": {"repetition_penalty": 1.1}}
    adapter = {"source": {"kind": "adapter", "path": "p"}, "license": "MIT", "tuned_from": "a"}
    entries(a=base, b=adapter, c=adapter | {"tuned_from": "b", "sampling": {"repetition_penalty": 1.3}})
    assert model_entry("b").sae == model_entry("a").sae and model_entry("b").experiments == []
    assert (model_entry("c").steer_layer, model_entry("c").sampling.repetition_penalty) == (1, 1.3)
    assert registry.base_of("c") == "a"


def test_which_models_run_what_is_derived(entries):
    base = STEERED | {"sae": READ, "boost": BOOST, "experiments": ["finetune", "detectors"]}
    concepts = STEERED | {"concepts": {"path": "c.yaml", "layer": 1}, "boost": BOOST}
    adapter = {"source": {"kind": "adapter", "path": "p"}, "license": "MIT", "tuned_from": "a"}
    entries(a=base, b=adapter, c=concepts)
    groups = study.derive(["b", "c"])
    assert groups["local"] == {"a": {"folder": "m"}, "c": {"folder": "m"}}
    assert groups["merged"] == {"b": {"base": "a", "adapter": "p"}}
    assert list(groups["bases"]) == ["a", "c"] and list(groups["with_sae"]) == ["a"]
    assert groups["models"]["b"] == {"base": "a", "latents": "data/latents/a", "directions": "s"}
    assert groups["models"]["c"]["directions"] == "data/concepts/c/directions.safetensors"
    assert groups["finetune"] == groups["organisms"] == {}  # of a, which is not chosen


def test_a_shipped_organism_is_made_by_a_stage_and_measured_by_another(entries):
    base = STEERED | {"sae": READ, "boost": BOOST, "experiments": ["finetune"]}
    shipped = {"source": {"kind": "adapter", "path": "data/organism/a/1"}, "license": "MIT", "tuned_from": "a"}
    entries(a=base, b=shipped, c=base)
    groups = study.derive(["a", "c"])
    assert list(groups["organisms"]) == ["a"]
    assert groups["finetune"]["a"]["trainings"] == "data/organism/a"
    assert groups["finetune"]["c"]["trainings"] == "data/corpus/c/summary.json"  # always there: c has no trainings


def test_keys_stand_where_dvc_notices_that_they_change():
    """Else a changed number would leave results that DVC calls up to date."""
    pipeline = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    sections = params.keys() | params["scales"]["laptop"].keys()
    for stage, (_, others) in STAGES.items():
        if stage in pipeline:
            body = pipeline[stage].get("do", pipeline[stage])
            tracked = {name for name in body.get("params", []) if isinstance(name, str)}
            read = [name for name in (stage, *others) if name in sections]
            allowed = {place for name in read for place in stages.places(name, "${scale}")}
            assert allowed == tracked - {"seed", "models", "scale"}, stage


def test_an_entry_changes_sections_whose_stages_dvc_reruns_for_it():
    pipeline = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    bodies = {name: stage.get("do", stage) for name, stage in pipeline.items()}
    tracked = {
        name for name, body in bodies.items()
        for file in body.get("params", []) if isinstance(file, dict) and "${key}" in file.get("data/models.yaml", [])
    }  # fmt: skip
    assert set(stages.OF_MODELS) == tracked | {"generation"}


def test_settings_of_an_entry_count_before_those_of_params(entries, params):
    size, scales = {"steer": {"n_seeds": 7}}, {"smoke": {"steer": {"n_prompts": 9}, "generation": {"batch_size": 3}}}
    base = STEERED | {"sae": READ, "boost": BOOST}
    written = YAML(typ="safe", pure=True).load(ROOT / "data" / "models.yaml")
    entries(**written, a=base | {"params": size | {"scales": scales}})
    params("scale: laptop", "scale: smoke")
    assert {k: stage_parameters("steer", "a")[k] for k in ("n_seeds", "n_prompts", "batch_size")} == {
        "n_seeds": 7, "n_prompts": 9, "batch_size": 3,
    }  # fmt: skip
    assert stage_parameters("steer")["n_seeds"] == 1
    params("scale: smoke", "scale: laptop")
    laptop = stage_parameters("steer", "a")
    assert (laptop["n_seeds"], laptop["n_prompts"]) == (7, stage_parameters("steer")["n_prompts"])


def test_settings_of_an_entry_are_of_its_model_alone(entries):
    written = YAML(typ="safe", pure=True).load(ROOT / "data" / "models.yaml")
    entries(**written)
    before = {stage: stage_parameters(stage) for stage in ("power", "measure", "judge")}
    written["smollm2-135m"]["params"] = {
        "generation": {"batch_size": 3},
        "scales": {"laptop": {"generation": {"max_new_tokens": 33}}},
    }
    entries(**written)
    assert {stage: stage_parameters(stage) for stage in before} == before  # of all models together
    assert stage_parameters("steer", "qwen25-coder-05b")["max_new_tokens"] == before["power"]["max_new_tokens"]
    tuned = stage_parameters("steer", "smollm2-135m-selfcorrect")
    assert (tuned["max_new_tokens"], tuned["batch_size"]) == (33, 3)  # as its base, with which it is compared


def test_a_fine_tuned_model_adds_to_the_settings_of_its_base(entries):
    written = YAML(typ="safe", pure=True).load(ROOT / "data" / "models.yaml")
    written["smollm2-135m"]["params"] = {
        "generation": {"batch_size": 3},
        "scales": {"laptop": {"latents": {"n_latents": 4}}},
    }
    written["smollm2-135m-selfcorrect"]["params"] = {"steer": {"n_seeds": 2}, "generation": {"batch_size": 5}}
    entries(**written)
    tuned = stage_parameters("steer", "smollm2-135m-selfcorrect")
    assert (tuned["n_seeds"], tuned["batch_size"]) == (2, 5) and stage_parameters("steer")["batch_size"] == 3
    assert sizes_of("smollm2-135m-selfcorrect").n_latents == 4
    for params in ({"latents": {"min_density": 0.1}}, {"scales": {"laptop": {"latents": {"n_latents": 9}}}}):
        written["smollm2-135m-selfcorrect"]["params"] = params
        entries(**written)
        with pytest.raises(
            ConfigError, match="the stage latents runs on smollm2-135m alone, .* write latents under params of"
        ):
            model_entry("smollm2-135m-selfcorrect")


def test_wrong_settings_of_any_chosen_model_are_found_before_the_first_stage(entries):
    written = YAML(typ="safe", pure=True).load(ROOT / "data" / "models.yaml")
    written["smollm2-135m-selfcorrect"]["params"] = {"controls": {"n_random": "many"}}
    entries(**written)
    with pytest.raises(
        ConfigError, match="controls, with params of smollm2-135m-selfcorrect in .*: n_random is 'many'"
    ):
        stage_parameters("fetch")


def test_an_empty_section_of_a_scale_is_completed_by_the_other_place(params):
    params("    controls: {n_prefills: 100}\n", "    controls:\n")
    params("controls:\n  max_off", "controls:\n  n_prefills: 100\n  max_off")
    assert stage_parameters("controls")["n_prefills"] == 100


def test_the_seed_of_a_shipped_result_may_be_an_entrys(entries):
    written = YAML(typ="safe", pure=True).load(ROOT / "data" / "models.yaml")
    written["smollm2-135m"]["params"] = {"train_sae": {"seed": 7}}
    entries(**written)
    assert stage_parameters("train_sae")["seed"] == 7
    written["smollm2-135m"]["params"] = {"steer": {"seed": 7}}
    entries(**written)
    with pytest.raises(ConfigError, match="params.steer: unknown key 'seed'"):
        stage_parameters("steer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steer": {"n_seeds": 5}}, "steer is where DVC does not notice its changes: move it to scales.laptop.steer"),
        ({"scales": {"smoke": {"measure": {"n_bootstrap": 9}}}}, "scales.smoke.measure is where .* move it to measure"),
    ],
)
def test_keys_elsewhere_are_refused(tmp_path, monkeypatch, change, message):
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for name, value in change.get("scales", {}).items():
        params["scales"][name] |= value
    params |= {key: value for key, value in change.items() if key != "scales"}
    monkeypatch.setattr(stages, "PARAMS", tmp_path / "params.yaml")
    YAML().dump(params, tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match=message):
        stages.stage_parameters("steer")


def test_a_fine_tuned_model_is_steered_as_its_base(entries):
    base = STEERED | {"sae": SAE, "boost": BOOST}
    tuned = {"source": {"kind": "folder", "path": "p"}, "license": "MIT", "tuned_from": "a"}
    for field in ({"sae": SAE | {"layer": 3}}, {"steer_layer": 2}, {"corpus": "c"}):
        entries(a=base, b=tuned | field)
        with pytest.raises(ConfigError, match=f"b: {next(iter(field))} is not that of a, .* or remove tuned_from"):
            model_entry("b")
    entries(a=base, b=tuned | {"sae": SAE})
    assert model_entry("b").sae == model_entry("a").sae


def test_adapters_do_not_change_what_the_sae_reads(entries):
    entries(a=STEERED | {"sae": SAE | {"layer": 2}, "boost": BOOST, "experiments": ["finetune"]})
    with pytest.raises(
        ConfigError, match="adapters begin above steer_layer 1 and would change what the SAE of layer 2"
    ):
        model_entry("a")


RECIPES = [  # of README, "Change one thing": dvc exp run -S KEY=VALUE, and the stage that reads the new value first
    ("calibrate.target", 50.0, "calibrate"),
    ("boost_sweep.offsets", [-1.0, 0.0, 1.0], "boost_sweep"),
    ("scale", "paper", None),
]


def test_every_recipe_of_the_readme_is_known_here():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [key for key in re.findall(r"dvc exp run -S '?([\w.]+)=", text)] == [key for key, *_ in RECIPES]
    for key, value, _ in RECIPES:
        assert f"{key}={value}".replace(" ", "") in text


@pytest.mark.parametrize(("key", "value", "stage"), RECIPES)
def test_a_recipe_of_the_readme_changes_what_its_stage_reads_and_nothing_else(params, key, value, stage):
    before = {name: stage_parameters(name) for name in stages.STAGES}
    written = YAML(typ="safe", pure=True).load(stages.PARAMS)
    *sections, last = key.split(".")
    place = written
    for section in sections:
        place = place[section]
    assert last in place
    place[last] = value
    YAML().dump(written, stages.PARAMS)
    changed = {name for name in stages.STAGES if stage_parameters(name) != before[name]}
    assert changed == {stage} if stage else len(changed) > len(stages.STAGES) / 2
