"""Keys of everything that is kept between runs, and a table of changes to the inputs that determine them."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from esr.config.judges import LlmJudge
from esr.engine.workers import chunk_path
from esr.experiments import finetuning
from esr.experiments.lora import Recipe
from esr.experiments.self_corrections import Example
from esr.judging.llm import ModelJudge
from esr.models import devices, provenance
from esr.sae import on_policy
from esr.steering import provenance as steering
from esr.steering.trials import Plan, Settings, generate_responses
from esr.storage.records import Trial
from tests.golden.repository import ADAPTER, COMMIT, HUB, RELEASE, TEMPLATE, use, write

RESPONSES, CORPUS, TRAINING = "responses", "corpus", "training"  # chunks
CHECKPOINT, JUDGEMENT = "checkpoint", "judgement"
CHUNKS = {RESPONSES, CORPUS, TRAINING}
STEERED = {RESPONSES, TRAINING}

PLAN = Plan("steered", 3, "bread", "evaluation-01", "tell me about bread", 7, 0.5, layer=1)
EXAMPLE = Example(
    kind="correction", prompt_id="p", tokens=[1, 5, 7, 9], targets=[2, 3], restart=[2], no_restart=[4], latent=3,
    boost=0.5,
)  # fmt: skip
TRIAL = Trial.model_construct(prompt="tell me", label="bread", text="Bread is made of flour.")
JUDGE = LlmJudge(name="small", model="openai-api/local/m", base_url="http://localhost:8000/v1")


class Planned(Exception):
    """Raised in place of running chunks."""


class Planner:
    """Stands for Workers: keeps the keys of the chunks and runs none."""

    def map(self, function, chunks, **_options):
        raise Planned([str(chunk_path(function, json.loads(json.dumps(chunk)))) for chunk in chunks])


@dataclass
class Study:
    """Inputs of all that is kept between runs, in the repository at `root`."""

    root: Path
    patch: pytest.MonkeyPatch
    model: str = "tiny"
    settings: Settings = Settings("tiny", 0.0, 8, 6, adapter=ADAPTER)
    plans: list[Plan] = field(default_factory=lambda: [PLAN])
    requests: tuple[str, ...] = ("tell me about sea", "tell me about horses")
    layers: tuple[int, ...] = (1,)
    max_new_tokens: int = 6
    recipe: Recipe = Recipe(first_layer=2, openers=(5,))
    examples: list[Example] = field(default_factory=lambda: [EXAMPLE])
    residuals: torch.Tensor = field(default_factory=lambda: torch.arange(12.0).view(6, 2).bfloat16())
    sae_recipe: dict[str, Any] = field(default_factory=dict)
    judge: LlmJudge = JUDGE
    trial: Trial = TRIAL


@dataclass(frozen=True)
class Change:
    """A change to the inputs, and whose keys must change with it."""

    what: str
    apply: Callable[[Study], object]
    affected: frozenset[str]
    model: str = "tiny"


def keys(study: Study) -> dict[str, Any]:
    """Keys of everything that is kept. Of responses the first chunk's alone."""
    requests, layers = list(study.requests), list(study.layers)
    corpus = _planned(on_policy.write_corpus, study.model, requests, layers, study.max_new_tokens, Planner())
    settings = replace(study.settings, model=study.model)
    return {
        RESPONSES: _planned(generate_responses, study.plans, settings, Planner(), "")[0],
        CORPUS: corpus,
        TRAINING: _planned(finetuning.train_all, study.model, {"a": study.examples}, {"a": study.recipe}, Planner()),
        CHECKPOINT: _checkpoint(study),
        JUDGEMENT: (judge := ModelJudge(study.judge)).name + judge._key(study.trial),
    }


def _planned(function, *arguments) -> list[str]:
    with pytest.raises(Planned) as planned:
        function(*arguments)
    return planned.value.args[0]


def _checkpoint(study: Study) -> str:
    from esr.sae import training

    return training.training_key(study.residuals, training.Recipe(**study.sae_recipe))


def keys_of(built: Path, folder: Path, model: str, apply: Callable[[Study], object] | None = None) -> dict[str, Any]:
    """Keys of a copy, in `folder`, of the repository `built`, with the change `apply` made to it."""
    shutil.copytree(built, folder)
    with pytest.MonkeyPatch.context() as patch:
        use(folder, patch)
        study = Study(folder, patch, model)
        if apply:
            apply(study)
        found = keys(study)
    shutil.rmtree(folder)
    return found


def changed(built: Path, folder: Path, change: Change, known: dict[str, dict]) -> set[str]:
    """Whose keys differ after `change`. known: keys without a change, by model, which need not be computed again."""
    if change.model not in known:
        known[change.model] = keys_of(built, folder, change.model)
    before, after = known[change.model], keys_of(built, folder, change.model, change.apply)
    return {name for name in before if before[name] != after[name]}


# Changes


def flip(file: str, study: Study) -> None:
    """Change one byte in place; size and time of change stay."""
    path = study.root / file
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def append(file: str, study: Study) -> None:
    with (study.root / file).open("a") as opened:
        opened.write("\n")


def set_json(file: str, key: str, value: Any, study: Study) -> None:
    path = study.root / file
    write(path, json.dumps(json.loads(path.read_text()) | {key: value}))


def set_entry(key: str, value: Any, study: Study) -> None:
    """Set a field of the model's entry, "sae.layer" for the layer of its sae."""
    path = study.root / "data/models.yaml"
    registry = yaml.safe_load(path.read_text())
    place = registry[study.model]
    *outer, last = key.split(".")
    for name in outer:
        place = place.setdefault(name, {})
    place[last] = value
    write(path, yaml.safe_dump(registry, sort_keys=False))


def set_input(name: str, value: Any, study: Study) -> None:
    """Set an input of `Study`, "recipe.rank" for a field of one."""
    outer, _, last = name.partition(".")
    if last:
        held = getattr(study, outer)
        one = held[0] if isinstance(held, list) else held
        new = one.model_copy(update={last: value}) if hasattr(one, "model_copy") else replace(one, **{last: value})
        value = [new] if isinstance(held, list) else new
    setattr(study, outer, value)


def set_version(library: str, study: Study) -> None:
    known = provenance.version
    for module in (provenance, steering):
        study.patch.setattr(module, "version", lambda name: "9.9" if name == library else known(name))
    if library == "torch":
        study.patch.setattr(torch, "__version__", "9.9")


def set_attribute(owner, name: str, value: Any, study: Study) -> None:
    study.patch.setattr(owner, name, value)


def raise_numerics(room: str, study: Study) -> None:
    study.patch.setitem(provenance.NUMERICS, room, provenance.NUMERICS[room] + 1)


def move_branch(study: Study) -> None:
    """Another commit with the same files becomes the repository's branch main."""
    store = study.root / "hub" / f"models--{HUB['id'].replace('/', '--')}"
    shutil.copytree(store / "snapshots" / COMMIT, store / "snapshots" / ("f" * 40))
    write(store / "refs/main", "f" * 40)


def move_branch_to_another_sae(study: Study) -> None:
    move_branch(study)
    flip(f"{_snapshot(HUB['id'], 'f' * 40)}/{HUB['path']}/sae_weights.safetensors", study)


def _snapshot(repository: str, commit: str = COMMIT) -> str:
    return f"hub/models--{repository.replace('/', '--')}/snapshots/{commit}"


FETCHED = "data/fetch/tiny"
HUB_SAE = f"{_snapshot(HUB['id'])}/{HUB['path']}"
RELEASE_SAE = f"{_snapshot('google/gemma-scope-2b-pt-res')}/{RELEASE['id']}"
OTHER_RECIPE = {
    "openers": (6,), "projections": ("q_proj",), "rank": 2, "lora_alpha": 2.0, "dropout": 0.1, "lr": 1e-4,
    "warmup_steps": 1, "epochs": 1, "batch_size": 2, "restart_weight": 4.0, "no_restart_weight": 5.0, "seed": 1,
}  # fmt: skip
OTHER_SAE_RECIPE = {
    "d_sae": 64, "k": 4, "tokens": 10, "batch_size": 2, "lr": 1e-3, "warmup_share": 0.1, "decay_share": 0.1,
    "dead_after": 7, "aux_coefficient": 0.5, "aux_tokens": 7, "threshold_rate": 0.1, "seed": 1,
}  # fmt: skip
OTHER_PLAN = {
    "condition": "other", "latent": 4, "label": "sea", "prompt_id": "evaluation-02", "prompt": "tell me about sea",
    "seed": 8, "boost": 0.6, "layer": 0, "ablate": (5,), "instruction": "please", "prefill": (9,),
}  # fmt: skip
OTHER_EXAMPLE = {
    "tokens": [1, 5, 7, 8], "targets": [3], "restart": [], "no_restart": [], "latent": 4, "boost": 0.6,
}  # fmt: skip


def stale_changes(built: Path) -> Iterator[Change]:
    """Every input that determines a result, changed by a byte, a field or a version."""
    yield from _files(built)
    yield from _entries()
    yield from _machine()
    yield from _inputs()
    yield from _judge()


def _files(built: Path) -> Iterator[Change]:
    def row(what, apply, affected, model="tiny"):
        return Change(what, apply, frozenset(affected), model)

    unread = {"README.md", "LICENSE", "source.json"}
    for model in ("tiny", "tiny-whole"):
        for path in sorted((built / "data/fetch" / model).iterdir()):
            if path.name not in unread:
                file = f"data/fetch/{model}/{path.name}"
                yield row(f"a byte of {file}", partial(flip, file), CHUNKS, model)
    settings = {"rope_theta": 5e5, "rms_norm_eps": 1e-5, "sliding_window": 4, "torch_dtype": "float16"}
    for key, value in settings.items():
        yield row(f"config.json: {key}", partial(set_json, f"{FETCHED}/config.json", key, value), CHUNKS)
    yield row("generation_config.json: a second stop token",
              partial(set_json, f"{FETCHED}/generation_config.json", "eos_token_id", [2, 9]), CHUNKS)  # fmt: skip
    yield row("tokenizer_config.json: add_bos_token",
              partial(set_json, f"{FETCHED}/tokenizer_config.json", "add_bos_token", True), CHUNKS)  # fmt: skip
    yield row("chat template: a system turn",
              lambda s: write(s.root / FETCHED / "chat_template.jinja", f"be kind {TEMPLATE}"), CHUNKS)  # fmt: skip
    yield row("a file added to the model", lambda s: write(s.root / FETCHED / "added_tokens.json", "{}"), CHUNKS)
    removed = f"{FETCHED}/special_tokens_map.json"
    yield row("a file removed from the model", lambda s: (s.root / removed).unlink(), CHUNKS)
    yield row("a folder added to the model", lambda s: write(s.root / FETCHED / "1_Pooling/config.json", "{}"), CHUNKS)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        yield row(f"a byte of the adapter's {name}", partial(flip, f"{ADAPTER}/{name}"), {RESPONSES})
    yield row("a byte of a release's SAE", partial(flip, f"{RELEASE_SAE}/params.npz"), STEERED, "tiny-release")
    config = {
        "architecture": "standard", "apply_b_dec_to_input": False, "normalize_activations": "layer_norm", "d_in": 16,
        "dtype": "bfloat16", "metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.2.hook_resid_post"},
    }  # fmt: skip
    for model, folder in {"tiny": "data/train_sae/tiny", "tiny-hub": HUB_SAE}.items():
        weights = partial(flip, f"{folder}/sae_weights.safetensors")
        yield row(f"a byte of the weights of {model}'s SAE", weights, STEERED, model)
        for key, value in config.items():
            apply = partial(set_json, f"{folder}/cfg.json", key, value)
            yield row(f"cfg.json of {model}'s SAE: {key}", apply, STEERED, model)
    yield row("the branch of the SAE's repository moves", move_branch_to_another_sae, STEERED, "tiny-hub")
    directions = "data/concepts/tiny-concepts/directions.safetensors"
    yield row("a byte of the concepts' directions", partial(flip, directions), STEERED, "tiny-concepts")
    yield row("the residual norm",
              partial(set_json, "data/corpus/tiny/summary.json", "median_residual_norm", 8.5), STEERED)  # fmt: skip
    yield row("the norm at the layer of the SAE",
              partial(set_json, "data/corpus/tiny/summary.json", "median_sae_norm", 8.5), {RESPONSES})  # fmt: skip


def _entries() -> Iterator[Change]:
    everywhere = {"template.system": "be kind", "template.date": "2024-02-29"}
    sampled = {"sampling.temperature": 0.5, "sampling.repetition_penalty": 1.3}
    steered = {"sae.d_sae": 15, "boost.unit": "raw", "sae.layer": 2}
    for values, affected in ((everywhere, CHUNKS), (sampled, {RESPONSES}), (steered, STEERED)):
        for key, value in values.items():
            yield Change(f"entry: {key}", partial(set_entry, key, value), frozenset(affected))
    yield Change("entry: steer_layer", _steer_elsewhere, frozenset(STEERED))
    yield Change("entry: the release", _other_release, frozenset(STEERED), "tiny-release")
    yield Change("entry: the id in a release", _other_release_id, frozenset(STEERED), "tiny-release")
    yield Change("entry: the SAE's repository", _other_repository, frozenset(STEERED), "tiny-hub")
    yield Change("entry: the SAE's path in its repository", _other_path, frozenset(STEERED), "tiny-hub")
    yield Change("entry: the SAE's revision", _other_revision, frozenset(STEERED), "tiny-hub")
    yield Change("entry: the kind of source", _hub_to_folder, frozenset(STEERED), "tiny-hub")
    yield Change("entry: concepts.layer", partial(set_entry, "concepts.layer", 2), frozenset(STEERED), "tiny-concepts")


def _steer_elsewhere(study: Study) -> None:
    set_entry("steer_layer", 0, study)
    study.plans = [replace(study.plans[0], layer=None)]
    study.recipe = replace(study.recipe, first_layer=1)


def _other_release(study: Study) -> None:
    """The same file under the name of another release."""
    set_entry("sae.release", "gemma-scope-2b-pt-res-canonical", study)
    set_entry("sae.id", "layer_16/width_16k/canonical", study)


def _other_release_id(study: Study) -> None:
    shutil.copytree(study.root / RELEASE_SAE, (study.root / RELEASE_SAE).with_name("average_l0_42"))
    set_entry("sae.id", "layer_16/width_16k/average_l0_42", study)


def _other_repository(study: Study) -> None:
    shutil.copytree(study.root / "hub/models--someone--saes", study.root / "hub/models--other--saes")
    set_entry("sae.id", "other/saes", study)


def _other_path(study: Study) -> None:
    shutil.copytree(study.root / HUB_SAE, (study.root / HUB_SAE).with_name("layer_2"))
    set_entry("sae.path", "layer_2", study)


def _other_revision(study: Study) -> None:
    set_entry("sae.revision", COMMIT, study)


def _hub_to_folder(study: Study) -> None:
    set_entry("sae", {"kind": "folder", "path": HUB_SAE, "layer": 1, "d_sae": 16}, study)


def _machine() -> Iterator[Change]:
    kept = CHUNKS | {CHECKPOINT}
    affected = {name: kept for name in ("torch", "transformers", "tokenizers", "safetensors", "jinja2")}
    affected |= {"peft": {RESPONSES, TRAINING}, "sae-lens": {CHECKPOINT}}
    for library, affects in affected.items():
        yield Change(f"version of {library}", partial(set_version, library), frozenset(affects))
    yield Change("version of sae-lens, of a release", partial(set_version, "sae-lens"),
                 frozenset(STEERED | {CHECKPOINT}), "tiny-release")  # fmt: skip
    other = torch.float16
    yield Change("dtype", partial(set_attribute, devices, "compute_dtype", lambda: other), frozenset(kept))
    yield Change("kind of device", lambda s: s.patch.setenv("ESR_DEVICE", "mps"), frozenset(kept))
    yield Change("processor", partial(set_attribute, provenance.platform, "machine", lambda: "other"), frozenset(kept))
    capability = partial(set_attribute, torch.backends.cpu, "get_cpu_capability", lambda: "other")
    yield Change("capability of the processor", capability, frozenset(kept))
    rooms = {"models": CHUNKS, "engine": CHUNKS, "sae": kept, "steering": STEERED, "experiments": {TRAINING}}
    for room, affects in rooms.items():
        yield Change(f"numerics version of {room}", partial(raise_numerics, room), frozenset(affects))


def _inputs() -> Iterator[Change]:
    def rows(prefix: str, others: dict, affected) -> Iterator[Change]:
        for name, value in others.items():
            yield Change(f"{prefix} {name}", partial(set_input, f"{prefix}.{name}", value), frozenset(affected))

    assert set(OTHER_PLAN) == {part.name for part in fields(Plan)}
    assert set(OTHER_RECIPE) | {"first_layer"} == set(asdict(Recipe(first_layer=2, openers=(5,))))
    settings = {"temperature": 0.7, "batch_size": 4, "max_new_tokens": 5, "response_only": True, "adapter": ""}
    yield from rows("settings", settings, {RESPONSES})
    yield from rows("plans", OTHER_PLAN, {RESPONSES})
    yield from rows("recipe", OTHER_RECIPE, {TRAINING})
    yield from rows("examples", OTHER_EXAMPLE, {TRAINING})
    corpus = {"requests": ("tell me about sea",), "layers": (0, 1), "max_new_tokens": 5}
    for name, value in corpus.items():
        yield Change(f"corpus: {name}", partial(set_input, name, value), frozenset({CORPUS}))
    for name, value in {"TEMPERATURE": 0.7, "REPETITION_PENALTY": 1.0, "BATCH": 8, "SHARD": 1}.items():
        yield Change(f"corpus: {name}", partial(set_attribute, on_policy, name, value), frozenset({CORPUS}))
    exchanged = torch.arange(12.0).view(6, 2).bfloat16().flip(0)
    yield Change("residuals in another order", partial(set_input, "residuals", exchanged), frozenset({CHECKPOINT}))
    moved = torch.arange(12.0).view(6, 2).bfloat16()
    moved[0, 0], moved[1, 1] = moved[1, 1].item(), moved[0, 0].item()
    yield Change("residuals of equal sum", partial(set_input, "residuals", moved), frozenset({CHECKPOINT}))
    for name, value in OTHER_SAE_RECIPE.items():
        yield Change(f"SAE recipe: {name}", partial(set_input, "sae_recipe", {name: value}), frozenset({CHECKPOINT}))


def _judge() -> Iterator[Change]:
    from esr.judging import llm, replies

    def row(what, apply):
        return Change(f"judge: {what}", apply, frozenset({JUDGEMENT}))

    settings = {
        "model": "openai-api/local/other", "base_url": "http://localhost:8001/v1", "temperature": 0.5,
        "structured": False, "max_tokens": 99,
    }  # fmt: skip
    for name, value in settings.items():
        yield row(name, partial(set_input, f"judge.{name}", value))
    yield row("server in the environment", _server_of_the_environment)
    yield row("rubric", partial(set_attribute, replies, "RUBRIC", "Be kind."))
    schema = partial(set_attribute, replies.Verdict, "model_json_schema", lambda: {"title": "other"})
    yield row("schema", schema)
    yield row("format of the message", partial(set_attribute, llm, "question", lambda trial: f"Grade {trial.text}"))
    for name in ("prompt", "label", "text"):
        yield row(name, partial(set_input, f"trial.{name}", "other"))


def _server_of_the_environment(study: Study) -> None:
    study.judge = study.judge.model_copy(update={"base_url": None})
    study.patch.setenv("LOCAL_BASE_URL", "http://localhost:8002/v1")


def harmless_changes() -> Iterator[Change]:
    """Changes that no result depends on."""

    def row(what, apply, model="tiny"):
        return Change(what, apply, frozenset(), model)

    for file in ("README.md", "LICENSE", "source.json"):
        yield row(f"{file} of the model", partial(append, f"{FETCHED}/{file}"))
    yield row("a licence and notes added to the model", _add_notes)
    yield row("the adapter's learning curve", partial(append, f"{ADAPTER}/curve.jsonl"))
    yield row("the SAE's training record", partial(append, "data/train_sae/tiny/training.json"))
    yield row("contexts beside the SAE", lambda s: write(s.root / "data/train_sae/tiny/contexts.safetensors", "x"))
    yield row("README of the SAE's repository", partial(append, f"{_snapshot(HUB['id'])}/README.md"), "tiny-hub")
    yield row("a commit with the same files", move_branch, "tiny-hub")
    yield row("times of all files", _touch)
    yield row("the SAE's folder moves", _move_sae)
    yield row("order of the registry's entries", _reverse_registry)
    yield row("another entry of the registry", _add_entry)
    unused = {
        "license": "Apache-2.0", "source": {"kind": "hub", "id": "a/b"}, "labels": {"kind": "file", "path": "x"},
        "corpus": "data/x", "experiments": ["detectors"], "boost.max": 1.0, "boost.prior_sd": 0.3,
    }  # fmt: skip
    for key, value in unused.items():
        yield row(f"entry: {key}", partial(set_entry, key, value))
    yield row("label of another latent", _another_label)
    yield row("number of workers", lambda s: s.patch.setenv("ESR_WORKERS", "7"))
    yield row("threads", lambda s: s.patch.setattr(torch, "get_num_threads", lambda: 7))
    for function in (on_policy.write_shard, finetuning.train_chunk):
        yield row(f"{function.__name__} moves", partial(set_attribute, function, "__module__", "esr.elsewhere"))
    limits = {
        "name": "other", "max_connections": 2, "max_retries": 1, "timeout_s": 9, "max_cost": 1.0,
        "usd_per_million_input": 1.0, "base_url": "http://localhost:8000/v1/",
    }  # fmt: skip
    for name, value in limits.items():
        yield row(f"judge: {name}", partial(set_input, f"judge.{name}", value))


def _add_notes(study: Study) -> None:
    for name in ("LICENSE-2.txt", "NOTICE", "USE_POLICY.md", "CHANGES.md", ".gitattributes", ".cache/huggingface/x"):
        write(study.root / FETCHED / name, "x")


def _touch(study: Study) -> None:
    for path in study.root.rglob("*"):
        os.utime(path, (1, 1))


def _move_sae(study: Study) -> None:
    (study.root / "data/train_sae/tiny").rename(study.root / "elsewhere")
    set_entry("sae.path", "elsewhere", study)


def _reverse_registry(study: Study) -> None:
    path = study.root / "data/models.yaml"
    write(path, yaml.safe_dump(dict(reversed(yaml.safe_load(path.read_text()).items())), sort_keys=False))


def _add_entry(study: Study) -> None:
    append_to = study.root / "data/models.yaml"
    registry = yaml.safe_load(append_to.read_text())
    write(append_to, yaml.safe_dump({"new": registry["tiny-whole"]} | registry, sort_keys=False))


def _another_label(study: Study) -> None:
    """A second chunk, of latent 9, is planned anyway; its label differs."""
    study.plans = [study.plans[0], replace(study.plans[0], latent=9, label="sea")]
