"""Mistakes in params.yaml and the registry, as users make them: one sentence with file, key, value and what is allowed.

The tables hold (id, function that spoils the file's text, part of the message).
"""

import re
import shutil

import pytest

from esr import paths
from esr.config import registry, stages, study
from esr.config.registry import load_registry, model_entry
from esr.config.schema import ConfigError, load_texts, load_yaml
from esr.config.stages import stage_parameters
from esr.paths import PROMPTS, ROOT


def put(old, new):
    """A function that replaces `old`, which must be in the text, by `new`."""

    def spoil(text):
        assert old in text, old
        return text.replace(old, new, 1)

    return spoil


def without(section):
    """A function that removes a section with its lines."""

    def spoil(text):
        found = re.search(rf"^{section}:.*\n(?:[ ]+.*\n|\n)*", text, re.MULTILINE)
        return text[: found.start()] + text[found.end() :]

    return spoil


TEMPERATURE = "temperature: 0.6"
BAD_PARAMETERS = [
    ("misspelt key", put(TEMPERATURE, "temprature: 0.6"),
     "params.yaml: generation: unknown key 'temprature' (did you mean 'temperature'?); allowed are temperature, "),
    ("wrong case", put(TEMPERATURE, "Temperature: 0.6"), "unknown key 'Temperature' (did you mean 'temperature'?)"),
    ("wrong case of a section", put("judge:\n", "Judge:\n"),
     "params.yaml: unknown key 'Judge' (did you mean 'judge'?)"),
    ("misspelt section", put("latents:\n", "latent:\n"), "unknown key 'latent' (did you mean 'latents'?)"),
    ("key with another's name", put("  n_bootstrap: 4000", "  resamples: 4000"),
     "measure: unknown key 'resamples'; allowed are models, seed, confidence, n_bootstrap"),
    ("misspelt nested key", put("judges: []", "judges: [{name: a, model: openai/m, timeout: 3}]"),
     "params.yaml: judge: judges.0: unknown key 'timeout' (did you mean 'timeout_s'?); allowed are name, model"),
    ("misspelt section of a scale", put("    latents: {n_latents: 3}", "    latnts: {n_latents: 3}"),
     "params.yaml: scales.smoke: unknown key 'latnts' (did you mean 'latents'?)"),
    ("misspelt scale", put("scale: laptop", "scale: Laptop"),
     "scale is 'Laptop' (did you mean 'laptop'?); allowed are"),
    ("misspelt model", put("models: [smollm2-135m,", "models: [smolm2-135m,"),
     "Unknown model 'smolm2-135m' under models in params.yaml (did you mean 'smollm2-135m'?): data/models.yaml has"),
    ("null for a number", put(TEMPERATURE, "temperature: null"), "temperature is null; it must be a valid number"),
    ("no value", put(TEMPERATURE, "temperature:"), "temperature is null; it must be a valid number"),
    ("nan", put(TEMPERATURE, "temperature: .nan"), "temperature is nan; it must be a finite number"),
    ("inf", put("max_sd_ratio: 0.78", "max_sd_ratio: .inf"),
     "calibrate: max_sd_ratio is inf; it must be a finite number"),
    ("the word nan", put(TEMPERATURE, "temperature: nan"), "temperature is 'nan'; it must be a valid number"),
    ("number as text", put(TEMPERATURE, "temperature: '0.6'"),
     "temperature is '0.6'; it must be a valid number: remove the quotes"),
    ("comma as decimal point", put(TEMPERATURE, "temperature: 0,6"),
     "temperature is '0,6'; it must be a valid number: write a point for the comma"),
    ("fraction for a count", put("batch_size: 192", "batch_size: 19.2"),
     "batch_size is 19.2; it must be a valid int"),
    ("true for a number", put("seed: 2602", "seed: true"),
     "params.yaml: seed is true; it must be a valid integer"),
    ("out of range", put(TEMPERATURE, "temperature: 20"), "temperature is 20; it must be less than or equal to 2"),
    ("no model", put("models: [smollm2-135m, smollm2-135m-selfcorrect]", "models: []"),
     "params.yaml: models is empty; give 1 or more, as in `models: [smollm2-135m]`"),
    ("one model as text", put("models: [smollm2-135m, smollm2-135m-selfcorrect]", "models: smollm2-135m"),
     "models is 'smollm2-135m'; it must be a valid list: write [smollm2-135m]"),
    ("a model twice", put("models: [smollm2-135m,", "models: [smollm2-135m, smollm2-135m,"),
     "'smollm2-135m', 'smollm2-135m-selfcorrect']; 'smollm2-135m' is there twice: remove one"),
    ("min above max, density", put("max_density: 0.02", "max_density: 1.0e-6"),
     "latents: max_density (1e-06) is below min_density (1e-05): raise max_density or lower min_density"),
    ("min above max, boost", put("max_boost: 0.4", "max_boost: 0.1"),
     "max_boost (0.1) is below min_boost (0.15): raise"),
    ("min above max, tokens", put("max_tokens: 96", "max_tokens: 16"),
     "max_tokens (16) is below min_tokens (32): raise"),
    ("empty window", put("windows: [[0, 32],", "windows: [[32, 32],"),
     "controls: windows has [32, 32], which holds no token: give two numbers, the second larger"),
    ("a key twice", put("seed: 2602", "seed: 2602\nseed: 1"), "params.yaml, line 7: the key 'seed' is there twice"),
    ("a section twice", lambda text: f"{text}\njudge: {{name: offline}}\n",
     "the key 'judge' is there twice: remove one"),
    ("empty file", lambda _text: "",
     "params.yaml is empty; it must hold keys with values: write lines as `key: value`, or"),
    ("comments alone", lambda _text: "# nothing\n\n",
     "is empty; it must hold keys with values: write lines as `key: value`, or"),
    ("a list for the file", lambda _text: "- a\n- b\n",
     "is ['a', 'b']; it must hold keys with values: write lines as `key:"),
    ("a text for the file", lambda _text: "seed",
     "is 'seed'; it must hold keys with values: write lines as `key: value`, or restore"),
    ("a list for a stage", lambda text: f"{without('latents')(text)}\nlatents: [1, 2]\n",
     "params.yaml: latents is [1, 2]; it must hold keys with values, such as n_latents, min_concreteness"),
    ("a number for a stage", lambda text: f"{without('latents')(text)}\nlatents: 5\n",
     "params.yaml: latents is 5; it must hold keys with values, such as n_latents"),
    ("a list for a stage of a scale", put("    latents: {n_latents: 3}", "    latents: [3]"),
     "params.yaml: scales.smoke.latents is [3]; it must hold keys with values, such as n_latents"),
    ("a list of scales", lambda text: f"{without('scales')(text)}\nscales: [laptop]\n",
     "params.yaml: scales is ['laptop']; it must hold keys with values, as in `scales: {laptop: {"),
    ("tab", put("  temperature: 0.6", "\ttemperature: 0.6"),
     "params.yaml, line 9: not valid YAML: a tab indents the line: use spaces"),
    ("open bracket", put("seed: 2602", "seed: [2602"),
     "params.yaml, line 6: not valid YAML: a bracket is opened and not closed: close it"),
    ("no space after the colon", put("seed: 2602", "seed:2602"),
     "params.yaml, line 6: not valid YAML: a colon and a space are missing after the key, as in `seed: 1`"),
    ("no number, word by word", put("seed: 2602", "seed: 2602 or so"),
     "seed is '2602 or so'; it must be a valid int"),
    ("wrong indentation", put("  temperature: 0.6", "   temperature: 0.6"),
     "params.yaml, line 10: not valid YAML: it is indented unlike the lines above: indent it as they are"),
    ("form feed", put("seed: 2602", "seed: 2602\x0c"),
     "params.yaml, line 6: the character U+000C is not allowed in YAML"),
    ("next line", put("seed: 2602", "seed: 2602\x85"),
     "params.yaml, line 6: the character U+0085 is not allowed in YAML"),
    ("NUL", put("seed: 2602", "seed: 2602\0"), "params.yaml, line 6 holds a NUL character"),
    ("no seed", put("seed: 2602", ""), "params.yaml: seed is missing; add it at the top level, as an integer"),
    ("no scale", put("scale: laptop", ""),
     "scale is missing; add it at the top level, as in `scale: smoke` or `scale: laptop` or `scale: paper`"),
    ("no models", put("models: [smollm2-135m, smollm2-135m-selfcorrect]", ""),
     "params.yaml: models is missing; add it at the top level, as in `models: [smollm2-135m]`"),
    ("no generation", without("generation"),
     "write it under generation or scales.laptop.generation, as a number of at least 0 and at most 2"),
    ("no section of a stage", without("latents"),
     "min_concreteness is missing; write it under latents or scales.laptop.latents, as a number of at least 0"),
    ("no section that others read", without("measure"),
     "confidence is missing; write it under measure, as a number above 0 and below 1"),
    ("no scales", without("scales"),
     "params.yaml: scales is missing; add it at the top level, as in `scales: {laptop: {"),
    ("a scale without a section", put("    latents: {n_latents: 32}\n", ""),
     "latents: n_latents is missing; write it under latents or scales.laptop.latents, as an integer above 0"),
    ("an empty scale", lambda text: text.replace("scale: laptop", "scale: big") + "\n  big:\n",
     "scales.big is empty; it must hold keys with values, such as generation, fetch, corpus: write its settings"),
    ("a choice misspelt", put("rule: auc", "rule: acu"),
     "rule is 'acu'; it must be 'strict', 'auc' or 'cohens_d'"),
    ("no choice of those", put("name: offline", "name: oracle"),
     "name is 'oracle'; it must be 'offline': it is the judge of the"),
    ("a value that needs another", put("ratio: 0.4", "ratio: 0.5"),
     "finetune: ratio is 0.5, which is none of the ratios"),
    ("a judge without a provider", put("judges: []", "judges: [{name: a, model: gpt}]"),
     "judge: judges.0.model is 'gpt'; write it as in `model: openai/gpt-4o-mini`"),
    ("a judge's name with spaces", put("judges: []", "judges: [{name: A b, model: openai/m}]"),
     "judge: judges.0.name is 'A b'; write it as in `name: gpt-4o-mini`"),
    ("two judges of one name", put("judges: []", "judges: [{name: offline, model: openai/m}]"),
     "judge: each judge needs a unique name, these are offline, offline: rename one"),
]  # fmt: skip

ENTRY = "smollm2-135m:\n"
BAD_ENTRIES = [
    ("misspelt field", put("  steer_layer: 17", "  steer_layers: 17"),
     "smollm2-135m: unknown key 'steer_layers' (did you mean 'steer_layer'?); allowed are source, license"),
    ("wrong case", put("  license: Apache-2.0", "  License: Apache-2.0"),
     "unknown key 'License' (did you mean 'license'?)"),
    ("misspelt field of a source", put("    sha256:", "    sha265:"),
     "data/models.yaml: smollm2-135m: source: unknown key 'sha265' (did you mean 'sha256'?); allowed are"),
    ("misspelt field of an SAE", put("d_sae: 4608", "d_sea: 4608"),
     "smollm2-135m: sae: unknown key 'd_sea' (did you mean 'd_sae'?); allowed are layer, d_sae, kind, path"),
    ("unknown kind of source", put("    kind: wheel", "    kind: weel"),
     "smollm2-135m: source.kind is 'weel' (did you mean 'wheel'?)"),
    ("no kind", put("kind: folder, path", "path"), "sae has no kind; add it, one of folder, release, hub"),
    ("no license", put("  license: Apache-2.0\n", ""),
     "smollm2-135m: license is missing; add it, as in `license: Apache-2.0`"),
    ("bounds in the wrong order", put("min: 0.0, max: 1.2", "min: 1.3, max: 1.2"),
     "smollm2-135m: boost: min (1.3) must be below max (1.2): lower min or raise max"),
    ("a list for an entry", lambda text: f"{text}\nmine: [1]\n",
     "mine is [1]; it must hold keys with values, such as source, l"),
    ("base that is no text", put("tuned_from: smollm2-135m", "tuned_from: [smollm2-135m]"),
     "tuned_from is ['smollm2-135m'], which is a list: write one id, as in `tuned_from: smollm2-135m`"),
    ("an id twice", lambda text: f"{text}\n{ENTRY}  license: none\n", "the key 'smollm2-135m' is there twice"),
    ("date that is none", put("  license: Apache-2.0", "  license: Apache-2.0\n  template: {date: '2025-13-01'}"),
     "template.date is '2025-13-01'; it must be a valid date"),
    ("experiment misspelt", put("experiments: [finetune,", "experiments: [fintune,"),
     "'controls' (did you mean 'finetune'?)"),
    ("backend misspelt", put("  license: Apache-2.0", "  license: Apache-2.0\n  backend: vlm"),
     "smollm2-135m: backend is 'vlm'; it must be 'transformers' or 'vllm' (did you mean 'vllm'?)"),
    ("settings of another backend", put("  license: Apache-2.0", "  license: Apache-2.0\n  vllm: {seed: 1}"),
     "vllm has settings, and backend is transformers: write backend: vllm, or remove vllm"),
    ("draft tokens", put("  license: Apache-2.0",
                         "  license: Apache-2.0\n  backend: vllm\n  vllm: {speculative_config: x}"),
     "vllm.speculative_config cannot be set, because draft tokens pass without edits: remove it"),
    ("training on vLLM", put("  license: Apache-2.0", "  license: Apache-2.0\n  backend: vllm"),
     "experiments has finetune, which trains with transformers: remove finetune, or write backend: vllm at the"),
    ("empty registry", lambda _text: "", "data/models.yaml is empty; it must hold keys with values: write lines"),
]  # fmt: skip


def one_sentence(message: str) -> bool:
    return message.endswith(".") and len(message.splitlines()) == 1 and len(message) < 700


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Copies of params.yaml, registry and data/study.yaml, which the program then reads."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for module, name in ((stages, "PARAMS"), (registry, "REGISTRY"), (study, "STUDY")):
        copy = tmp_path / getattr(module, name).relative_to(ROOT)
        shutil.copy(getattr(module, name), copy)
        monkeypatch.setattr(module, name, copy)
    return tmp_path


def spoilt(path, spoil):
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8", newline="")


@pytest.mark.parametrize(
    ("spoil", "message"), [case[1:] for case in BAD_PARAMETERS], ids=[c[0] for c in BAD_PARAMETERS]
)
def test_a_mistake_in_params_is_one_sentence(files, spoil, message):
    spoilt(files / "params.yaml", spoil)
    with pytest.raises(ConfigError) as error:
        stage_parameters("steer")
    assert message in paths.from_root(str(error.value)) and one_sentence(str(error.value))


@pytest.mark.parametrize(
    ("spoil", "message"), [case[1:] for case in BAD_ENTRIES], ids=[case[0] for case in BAD_ENTRIES]
)
def test_a_mistake_in_the_registry_is_one_sentence(files, spoil, message):
    spoilt(files / "data/models.yaml", spoil)
    with pytest.raises(ConfigError) as error:
        load_registry()
    assert message in paths.from_root(str(error.value)) and one_sentence(str(error.value))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_refused_by_name(files, encoding):
    path = files / "params.yaml"
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    with pytest.raises(ConfigError, match=f"^{path} is encoded in {encoding.upper()}: save it as UTF-8.$"):
        stage_parameters("steer")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
def test_files_are_read_however_an_editor_saved_them(files, end, mark):
    before = stage_parameters("steer")
    for name in ("params.yaml", "data/models.yaml"):
        spoilt(files / name, lambda text: mark + text.replace("\n", end))
    assert stage_parameters("steer") == before


def test_a_date_is_read_with_and_without_quotes(files):
    for model_id, written in (("plain", "2024-07-26"), ("quoted", "'2024-07-26'")):
        entry = f"{model_id}: {{source: {{kind: folder, path: x}}, license: none, template: {{date: {written}}}}}\n"
        spoilt(files / "data/models.yaml", lambda text, entry=entry: f"{text}\n{entry}")
        assert str(model_entry(model_id).template.date) == "2024-07-26"


def test_a_line_separator_in_a_text_stays_in_it(tmp_path):
    (tmp_path / "texts.yaml").write_text("a: x\u2028y\nb: 'x\u2029{label}'\n", encoding="utf-8")
    assert load_yaml(tmp_path / "texts.yaml") == {"a": "x\u2028y", "b": "x\u2029{label}"}


def test_the_instructions_name_the_distractor_alone(tmp_path):
    instructions = load_texts(PROMPTS / "meta_prompts.yaml", ["distractor"])
    names = ["stay_focused", "ignore_distractor", "monitor_yourself", "resist_manipulation", "unrelated"]
    assert list(instructions) == names
    path = tmp_path / "meta_prompts.yaml"
    for content, message in (
        ("a: Do {this}.", r"a has \{this\}; allowed are \{distractor\}."),
        ("a: Do {this.", r"a has a single brace \(.*\): write \{\{ or \}\} for one."),
        ("a: 5", "a is 5; it must be a valid string."),
        ("a:", "a is null; it must be a valid string."),
        ("- a", r"is \['a'\]; it must hold keys with values: write lines"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=f"^{path}:? {message}"):
            load_texts(path, ["distractor"])
