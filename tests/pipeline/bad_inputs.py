"""A tiny study whose inputs are right, and ways to spoil each of them, with what the refusal must say.

`BAD` is the table: a name, what spoils the study's folder, the command that must refuse it, and words of the sentence,
in which a user finds what is wrong, where, what is allowed and what to do.
"""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from replica import byte_tokenizer
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from esr.paths import ROOT as REPOSITORY
from esr.pipeline import cli
from tests.sae.releases import tiny_sae, write_release

sys.path.insert(0, str(Path(__file__).parents[1] / "config"))
from test_schema import BAD_ENTRIES, BAD_PARAMETERS  # noqa: E402

MODEL, LAYERS, WIDTH, D_SAE = "tiny", 3, 32, 64
FOLDER = f"data/fetch/{MODEL}"
SAE = "data/sae_of_tiny"


class Bad(NamedTuple):
    name: str
    spoil: Callable[[Path], object]
    words: tuple[str, ...]
    command: tuple[str, ...] = ("check", MODEL)


def write_study(root: Path, repository: Path) -> None:
    """Parameters, registry, prompts, numbers, one fetched model with its SAE; nothing is wrong with them."""
    for folder in ("data/prompts", "data/judge", "paper/numbers"):
        shutil.copytree(repository / folder, root / folder)
    shutil.copy(repository / "params.yaml", root)
    entry = {
        "source": {"kind": "folder", "path": "models/tiny"}, "license": "none", "n_layers": LAYERS, "steer_layer": 1,
        "sae": {"kind": "folder", "path": SAE, "layer": 1, "d_sae": D_SAE},
        "boost": {"min": 0.0, "max": 1.2, "prior_mean": 0.45, "prior_sd": 0.2},
        "experiments": ["detectors", "ablate"],
    }  # fmt: skip
    judge = {"source": {"kind": "folder", "path": "models/minilm"}, "license": "none"}
    YAML().dump({MODEL: entry, "minilm-l6": judge}, root / "data" / "models.yaml")
    write_model(root / FOLDER, (repository / "data/prompts/evaluation.txt").read_text().splitlines()[:12])
    write_sae(root / SAE)


def write_model(folder: Path, texts: list[str]) -> None:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_sae(folder: Path) -> None:
    folder.mkdir()
    weights = {"W_enc": torch.ones(WIDTH, D_SAE), "W_dec": torch.eye(D_SAE)[:, :WIDTH].contiguous()}
    weights |= {"b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(WIDTH), "threshold": torch.zeros(D_SAE)}
    save_file(weights, folder / "sae_weights.safetensors")
    config = {
        "architecture": "jumprelu", "d_in": WIDTH, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_resid_post", "model_name": MODEL, "sae_lens_version": "6.54.0"},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))


def edit(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the content of a YAML or JSON file."""

    def spoil(root: Path) -> None:
        path = root / file
        yaml = path.suffix == ".yaml"
        content = YAML().load(path) if yaml else json.loads(path.read_text())
        change(content)
        YAML().dump(content, path) if yaml else path.write_text(json.dumps(content))

    return spoil


def put(file: str, *keys: str, value: object) -> Callable[[Path], None]:
    """Set a value in a YAML or JSON file."""

    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit(file, change)


def drop(file: str, *keys: str) -> Callable[[Path], None]:
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit(file, change)


def text(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda root: (root / file).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(file: str) -> Callable[[Path], None]:
    return lambda root: (root / file).unlink()


def cut(file: str) -> Callable[[Path], None]:
    """Keep the first two thirds of a file: a download that broke off."""
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[: (root / file).stat().st_size * 2 // 3])


def weights(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        tensors = load_file(root / file)
        change(tensors)
        save_file(tensors, root / file)

    return spoil


def other_width(tensors: dict) -> None:
    narrow = {"W_dec": tensors["W_dec"][:, :16], "W_enc": tensors["W_enc"][:16], "b_dec": tensors["b_dec"][:16]}
    tensors.update({name: tensor.contiguous() for name, tensor in narrow.items()})


def to_integers(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"].char()


def every(*spoils: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda root: [spoil(root) for spoil in spoils] and None


def entry(*keys: str, value: object) -> Callable[[Path], None]:
    """Change the model's entry, and select it again, as a user would."""
    return every(put("data/models.yaml", MODEL, *keys, value=value), reselect)


def reselect(_root: Path) -> None:
    with suppress(SystemExit):  # an entry that is wrong in itself is refused here, too
        cli.main(["select"])


def params(*keys: str, value: object) -> Callable[[Path], None]:
    return put("params.yaml", *keys, value=value)


def config(key: str, value: object) -> Callable[[Path], None]:
    return put(f"{FOLDER}/config.json", key, value=value)


def template(source: str) -> Callable[[Path], None]:
    return text(f"{FOLDER}/chat_template.jinja", source)


def sae(*keys: str, value: object) -> Callable[[Path], None]:
    return put(f"{SAE}/cfg.json", *keys, value=value)


def labels(content: str) -> Callable[[Path], None]:
    return every(
        text("data/labels.jsonl", content), entry("labels", value={"kind": "file", "path": "data/labels.jsonl"})
    )


def released(sae_id: str, **fields: object) -> Callable[[Path], None]:
    release = {"kind": "release", "release": "gemma-scope-9b-it-res", "id": sae_id, "layer": 1, "d_sae": 16384}
    return entry("sae", value=release | fields)


def neuronpedia(name: str) -> Callable[[Path], None]:
    return entry("labels", value={"kind": "neuronpedia", "model": "gemma-2-9b-it", "sae": name})


def labels_of_another(root: Path) -> None:
    """A published SAE of the model's width in the hub's cache, with Neuronpedia's labels of one on MLPs."""
    release = {"release": "gemma-scope-2b-pt-res-canonical", "id": "layer_1/width_16k/canonical"}
    write_release(root / "hub", release["release"], release["id"], tiny_sae(WIDTH, 16384))
    put("data/models.yaml", MODEL, "sae", value={"kind": "release", "layer": 1, "d_sae": 16384} | release)(root)
    entry("labels", value={"kind": "neuronpedia", "model": "gemma-2-2b", "sae": "1-gemmascope-mlp-16k"})(root)


def concepts(changes: dict | None, layer: int = 1) -> Callable[[Path], None]:
    """Steering by concepts instead of an SAE; without their file where `changes` is None."""
    content = {"request": "Write a line.", "others": ["A chair.", "A table."], "concepts": [SEA]}

    def spoil(root: Path) -> None:
        fields = {"concepts": {"path": "data/concepts.yaml", "layer": layer}, "sae": None, "experiments": []}
        edit("data/models.yaml", lambda registry: registry[MODEL].update(fields))(root)
        if changes is not None:
            YAML().dump(content | changes, root / "data" / "concepts.yaml")
        reselect(root)

    return spoil


def repository(file: str, spoil: Callable[[str], str]) -> Callable[[Path], None]:
    """The repository's parameters, registry and data/study.yaml instead of the study's, one of them spoilt."""

    def change(root: Path) -> None:
        for name in ("params.yaml", "data/models.yaml", "data/study.yaml"):
            shutil.copy(REPOSITORY / name, root / name)
        (root / file).write_text(spoil((root / file).read_text(encoding="utf-8")), encoding="utf-8", newline="")

    return change


def local(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A source in a folder that is spoilt before it is fetched."""

    def spoil(root: Path) -> None:
        shutil.move(root / FOLDER, root / "models" / "tiny")
        change(root / "models" / "tiny")

    return spoil


def shards(root: Path) -> None:
    """An index that names a second file, which is missing."""
    folder = root / FOLDER
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": names | {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def whole_and_index(root: Path) -> None:
    """The weights in one file, beside them in a shard with its index."""
    folder = root / FOLDER
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def another_type(model_type: str, **fields: object) -> Callable[[Path], None]:
    """A configuration of another architecture."""
    sizes = {"vocab_size": 400, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    content = {"model_type": model_type, "intermediate_size": 48, "max_position_embeddings": 1024} | sizes | fields
    return text(f"{FOLDER}/config.json", json.dumps(content))


def vocabulary(tensors: dict) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100].contiguous()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}assistant:"
TURN = "{% for m in messages %}{{ '<|user|>' + m['content'] }}{% endfor %}<|assistant|>"

SEA = {"name": "sea", "texts": ["The waves roll in.", "Ships sail out."]}
# Mistakes in the repository's params.yaml and registry, from the table of tests/config
PARAMETERS = [
    Bad(f"params: {name}", repository("params.yaml", spoil), (words,), ("check", "smollm2-135m"))
    for name, spoil, words in BAD_PARAMETERS
]
ENTRIES = [
    Bad(f"entry: {name}", repository("data/models.yaml", spoil), (words,), ("check", "smollm2-135m"))
    for name, spoil, words in BAD_ENTRIES
]
FILES = [
    Bad("no parameters", remove("params.yaml"), ("params.yaml does not exist", "clone")),
    Bad(
        "parameters in UTF-16",
        text("params.yaml", "scale: laptop".encode("utf-16")),
        ("params.yaml", "UTF-16", "save it as UTF-8"),
    ),
    Bad(
        "prompts in UTF-16",
        text("data/prompts/evaluation.txt", "Why?".encode("utf-16")),
        ("data/prompts/evaluation.txt", "UTF-16", "save it as UTF-8"),
    ),
    Bad("no registry", remove("data/models.yaml"), ("data/models.yaml does not exist", "clone")),
]
SELECTION = [
    Bad(
        "misspelt id",
        lambda root: None,
        ("Unknown model 'tiny-' on the command line", "did you mean 'tiny'?", "data/models.yaml has tiny"),
        ("select", "tiny-"),
    ),
    Bad(
        "id in capitals",
        lambda root: None,
        ("Unknown model 'TINY' on the command line", "did you mean 'tiny'?"),
        ("check", "TINY"),
    ),
    Bad(
        "model twice",
        lambda root: None,
        ("tiny is named twice on the command line", "remove one"),
        ("select", MODEL, MODEL),
    ),
    Bad(
        "judge's model",
        lambda root: None,
        ("minilm-l6 cannot be steered", "no sae or concepts in data/models.yaml", "choose another model, or add"),
        ("select", "minilm-l6"),
    ),
    Bad("no model", params("models", value=[]), ("no models", "esr select"), ("select",)),
    Bad(
        "registry has changed",
        put("data/study.yaml", "study", "models", value={}),
        ("data/study.yaml is out of date for the models tiny", "run `esr select tiny`"),
    ),
    Bad(
        "no study",
        remove("data/study.yaml"),
        ("data/study.yaml does not exist", "run `esr select tiny`, which writes it"),
    ),
]
REGISTRY = [
    Bad(
        "dot in an id",
        put("data/models.yaml", "qwen2.5", value={}),
        ("data/models.yaml: id 'qwen2.5'", "dot or slash", "use letters"),
    ),
    Bad("SAE and concepts", entry("concepts", value={"path": "x", "layer": 1}), ("both sae and concepts", "remove")),
    Bad(
        "no number of layers",
        drop("data/models.yaml", MODEL, "n_layers"),
        ("data/models.yaml: tiny", "no n_layers, which steering needs", "add n_layers"),
    ),
    Bad(
        "no boost",
        drop("data/models.yaml", MODEL, "boost"),
        ("data/models.yaml: tiny", "no boost, which steering needs", "add boost"),
    ),
    Bad(
        "layer out of range",
        entry("steer_layer", value=9),
        ("data/models.yaml: tiny: steer_layer is 9", "n_layers is 3", "choose 0 to 2"),
    ),
    Bad(
        "SAE layer out of range",
        entry("sae", "layer", value=9),
        ("data/models.yaml: tiny: sae.layer is 9", "n_layers is 3", "choose 0 to 2"),
    ),
    Bad(
        "boost of another unit",
        entry("boost", "max", value=60.0),
        ("boost.max", "60", "at most 10", "lower it to 10 or less", "unit: raw"),
    ),
    Bad("prior outside", entry("boost", "prior_mean", value=2.0), ("prior_mean", "outside", "choose a value between")),
    Bad(
        "ablation without detectors",
        entry("experiments", value=["ablate"]),
        ("ablate without detectors", "add detectors"),
    ),
    Bad(
        "latents without an SAE",
        every(drop("data/models.yaml", MODEL, "sae"), entry("concepts", value={"path": "x", "layer": 1})),
        ("reads latents of an SAE", "remove it or add sae"),
    ),
    Bad(
        "params of another stage",
        entry("params", value={"judge": {"name": "mine"}}),
        ("data/models.yaml: tiny: params: unknown section 'judge'", "allowed are generation, corpus"),
    ),
    Bad(
        "params misspelt",
        entry("params", value={"scales": {"laptop": {"steer": {"n_prompt": 4}}}}),
        ("data/models.yaml: tiny: params.scales.laptop.steer: unknown key 'n_prompt'", "did you mean 'n_prompts'?"),
    ),
    Bad(
        "params of an unknown scale",
        entry("params", value={"scales": {"large": {"steer": {"n_prompts": 4}}}}),
        ("data/models.yaml: tiny: params.scales: unknown scale 'large'", "allowed are smoke, laptop, paper"),
    ),
    Bad(
        "params of a wrong type",
        entry("params", value={"steer": {"n_seeds": "many"}}),
        ("params.yaml: steer, with params of tiny in data/models.yaml: n_seeds is 'many'", "valid integer"),
    ),
    Bad(
        "adapter without base",
        entry("source", value={"kind": "adapter", "path": "x"}),
        ("tiny is an adapter without tuned_from", "add tuned_from"),
    ),
    Bad(
        "unknown base",
        entry("tuned_from", value="huge"),
        ("tiny: tuned_from is 'huge'", "not the id of another entry", "as in `tuned_from: minilm-l6`"),
    ),
    Bad(
        "no source",
        entry("source", value=[]),
        ("tiny: source is empty", "give 1 or more", "as in `source: {kind: hub"),
    ),
    Bad(
        "hub id without owner",
        entry("source", value={"kind": "hub", "id": "llama"}),
        ("tiny: source.id is 'llama'", "write it as in `id: Qwen/"),
    ),
    Bad(
        "penalty of 0",
        entry("sampling", value={"repetition_penalty": 0.0}),
        ("tiny: sampling.repetition_penalty is 0.0", "must be greater than 0"),
    ),
]
PROMPTS = [
    Bad("no prompts", remove("data/prompts/evaluation.txt"), ("evaluation.txt", "does not exist", "one per line")),
    Bad(
        "empty file of prompts", text("data/prompts/held_out.txt", "\n"), ("held_out.txt", "no prompt", "one per line")
    ),
    *(
        Bad(
            f"{split} prompts in a script without spaces",
            text(f"data/prompts/{split}.txt", f"{prompt}\n"),
            (f"data/prompts has '{prompt[:3]}", "script without spaces", "write prompts in a language that separates"),
        )
        for split, prompt in (
            ("held_out", "パンの焼き方を説明してください。"),
            ("evaluation", "如何在家烤一条简单的白面包?"),
        )
    ),
    Bad(
        "prompt twice",
        text("data/prompts/held_out.txt", "Why?\nWhy?\n"),
        ("held_out.txt, line 2", "twice", "Remove it, or line 1"),
    ),
    Bad(
        "instructions",
        text("data/prompts/meta_prompts.yaml", "a: [b\n"),
        ("data/prompts/meta_prompts.yaml, line 1", "not valid YAML", "close it"),
    ),
]
MODELS = [
    Bad(
        "not fetched",
        lambda root: shutil.rmtree(root / FOLDER),
        ("not fetched", "data/fetch/tiny/config.json", "make fetch MODELS=tiny"),
    ),
    Bad(
        "config not JSON", text(f"{FOLDER}/config.json", "{"), ("config.json", "not JSON", "download or write it again")
    ),
    Bad(
        "code of the authors",
        every(config("auto_map", {"AutoConfig": "x.Y"}), config("model_type", "novel")),
        ("data/fetch/tiny/config.json", "custom code", "part of transformers", "never run", "choose"),
    ),
    Bad(
        "unknown architecture",
        config("model_type", "novel"),
        ("data/fetch/tiny/config.json", "novel", "part of transformers", "choose"),
    ),
    Bad(
        "GPT-2",
        another_type("gpt2", n_layer=LAYERS),
        ("data/fetch/tiny/config.json", "gpt2", "supported", "llama", "choose"),
    ),
    Bad("NeoX", another_type("gpt_neox"), ("data/fetch/tiny/config.json", "gpt_neox", "supported", "llama", "choose")),
    Bad("Phi", another_type("phi"), ("data/fetch/tiny/config.json", "phi", "supported", "llama", "choose")),
    Bad("encoder", another_type("vit"), ("data/fetch/tiny/config.json", "vit", "supported", "choose")),
    Bad(
        "other number of layers",
        config("num_hidden_layers", 4),
        ("n_layers of tiny is 3", "config.json", "has 4", "write n_layers: 4"),
    ),
    Bad(
        "truncated weights",
        cut(f"{FOLDER}/model.safetensors"),
        ("model.safetensors", "truncated or damaged", "download or copy it again"),
    ),
    Bad("LFS pointer", text(f"{FOLDER}/model.safetensors", LFS), ("model.safetensors", "Git LFS", "git lfs pull")),
    Bad(
        "missing shard",
        shards,
        (
            "data/fetch/tiny has no model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "download that file",
        ),
    ),
    Bad(
        "weights twice",
        whole_and_index,
        ("data/fetch/tiny has both model.safetensors and model.safetensors.index.json", "ignore", "remove the others"),
    ),
    Bad(
        "no weights",
        remove(f"{FOLDER}/model.safetensors"),
        ("no safetensors weights", "model.safetensors", "save_pretrained"),
    ),
    Bad(
        "quantized",
        config("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("quantized", "gptq", "BF16, F16, F32", "plain weights"),
    ),
    Bad(
        "integer weights",
        weights(f"{FOLDER}/model.safetensors", to_integers),
        ("quantized", "I8", "BF16, F16, F32", "plain weights"),
    ),
    Bad(
        "tokenizer of another model",
        every(weights(f"{FOLDER}/model.safetensors", vocabulary), config("vocab_size", 100)),
        ("ids up to", "embeds only 0 to 99", "use the tokenizer"),
    ),
    Bad("other vocabulary size", config("vocab_size", 5000), ("config.json", "5000", "take both files")),
    Bad("other width", config("hidden_size", 64), ("config.json", "64", "hidden_size", "take both files")),
    Bad(
        "few positions",
        config("max_position_embeddings", 200),
        ("200", "max_position_embeddings", "lower max_new_tokens to"),
    ),
    Bad(
        "stop token out of range",
        put(f"{FOLDER}/generation_config.json", "eos_token_id", value=9999),
        ("data/fetch/tiny/generation_config.json", "eos_token_id 9999", "ids from 0", "correct it"),
    ),
    Bad(
        "no stop token",
        every(
            config("eos_token_id", None),
            template(PLAIN),
            drop(f"{FOLDER}/generation_config.json", "eos_token_id"),
            drop(f"{FOLDER}/tokenizer_config.json", "eos_token"),
        ),
        ("eos_token_id", "generation_config.json", "chat template"),
    ),
    Bad(
        "no tokenizer",
        every(*(remove(f"{FOLDER}/{f}") for f in ("tokenizer.json", "tokenizer_config.json"))),
        ("no tokenizer", "tokenizer.json", "save_pretrained"),
    ),
    Bad(
        "no settings of the tokenizer",
        remove(f"{FOLDER}/tokenizer_config.json"),
        ("data/fetch/tiny has no tokenizer_config.json", "without BOS", "save_pretrained"),
    ),
    Bad(
        "damaged tokenizer",
        text(f"{FOLDER}/tokenizer.json", "[]"),
        ("data/fetch/tiny", "its tokenizer.json is not one", "replace it", "make fetch MODELS=tiny"),
    ),
    Bad(
        "no template",
        remove(f"{FOLDER}/chat_template.jinja"),
        ("no chat template", "chat_template.jinja", "save_pretrained"),
    ),
    Bad(
        "template fails",
        template("{{ raise_exception('no') }}"),
        ("data/fetch/tiny", 'with the error "no"', "correct the template, or change the prompt"),
    ),
    Bad(
        "template drops the prompt", template("<|user|>hello<|assistant|>"), ("0 times", "must appear once", "correct")
    ),
    Bad("template repeats the prompt", template(TURN + TURN), ("2 times", "must appear once", "correct")),
    Bad("BOS twice", template("{{ bos_token }}{{ bos_token }}" + TURN), ("BOS", "twice", "remove")),
    Bad(
        "too little memory",
        params("generation", "batch_size", value=10**9),
        ("memory", "batch_size", "lower", "machine"),
    ),
]
SAES = [
    Bad(
        "no SAE",
        lambda root: shutil.rmtree(root / SAE),
        ("data/models.yaml: tiny: sae", "data/sae_of_tiny has no cfg.json", "name a folder"),
    ),
    Bad("cfg not JSON", text(f"{SAE}/cfg.json", "{"), (f"{SAE}/cfg.json", "SAELens", "write")),
    Bad(
        "cfg of another SAE",
        sae("d_sae", value=32),
        ("data/models.yaml: tiny: sae", "32", "64", "take", "from one SAE"),
    ),
    Bad(
        "SAE of another width",
        every(
            sae("d_in", value=16),
            weights(f"{SAE}/sae_weights.safetensors", other_width),
        ),
        ("data/models.yaml: tiny: sae", "16", "32", "choose an SAE that was trained on this model"),
    ),
    Bad(
        "SAE of another layer",
        sae("metadata", "hook_name", value="blocks.2.hook_resid_post"),
        ("data/models.yaml: tiny: sae", "layer 2", "sae.layer in data/models.yaml is 1", "write layer: 2"),
    ),
    Bad(
        "SAE of an MLP",
        sae("metadata", "hook_name", value="blocks.1.hook_mlp_out"),
        ("data/models.yaml: tiny: sae", "hook_mlp_out", "residual stream", "choose another SAE"),
    ),
    Bad(
        "other number of latents",
        entry("sae", "d_sae", value=128),
        ("data/models.yaml: tiny: sae", "d_sae 64", "is 128", "write d_sae: 64"),
    ),
    Bad(
        "transcoder",
        sae("architecture", value="transcoder"),
        ("data/models.yaml: tiny: sae", "transcoder", "choose an SAE of architecture", "jumprelu"),
    ),
    Bad(
        "top-k",
        sae("architecture", value="topk"),
        ("data/models.yaml: tiny: sae", "topk", "choose an SAE of architecture", "jumprelu"),
    ),
    Bad(
        "scaled input",
        sae("normalize_activations", value="layer_norm"),
        ("data/models.yaml: tiny: sae", "layer_norm", "only 'none'", "choose another SAE"),
    ),
    Bad(
        "truncated SAE",
        cut(f"{SAE}/sae_weights.safetensors"),
        ("data/sae_of_tiny/sae_weights.safetensors", "damaged", "delete it"),
    ),
    Bad(
        "LFS pointer of an SAE",
        text(f"{SAE}/sae_weights.safetensors", LFS),
        ("data/sae_of_tiny/sae_weights.safetensors", "Git LFS pointer", "delete it"),
    ),
    Bad(
        "no decoder",
        weights(f"{SAE}/sae_weights.safetensors", lambda t: t.pop("W_dec")),
        ("data/sae_of_tiny/sae_weights.safetensors", "no W_dec", "save it again", "choose another SAE"),
    ),
    Bad(
        "release of another layer",
        released("layer_20/width_16k/average_l0_14"),
        ("layer 20", "sae.layer is 1", "name the one"),
    ),
    Bad(
        "release of another width",
        released("layer_1/width_131k/average_l0_13"),
        ("about 131k", "16384", "name the one"),
    ),
]
LABELS = [
    Bad(
        "no labels",
        entry("labels", value={"kind": "file", "path": "data/none.jsonl"}),
        ("data/models.yaml: labels.path of tiny is data/none.jsonl", "does not exist", "correct the path"),
    ),
    Bad(
        "labels of another SAE",
        labels('{"index": 64, "label": "sea"}\n'),
        ("labels.jsonl", "latent 64", "0 to 63", "this SAE"),
    ),
    Bad(
        "label twice",
        labels('{"index": 1, "label": "a"}\n{"index": 1, "label": "b"}\n'),
        ("labels.jsonl", "two labels of latent 1", "keep one"),
    ),
    Bad(
        "labels not JSON",
        labels('1: sea\n{"index": 1, "label": "sea"}\n'),
        ("data/labels.jsonl, line 1 is not valid JSON", "column 2", "correct it"),
    ),
    Bad("label without index", labels('{"label": "sea"}\n'), ("data/labels.jsonl, line 1 has no index", "add it")),
    Bad(
        "labels of another layer", neuronpedia("20-gemmascope-res-16k"), ("layer 20", "sae.layer is 1", "name the one")
    ),
    Bad(
        "labels of another kind of SAE",
        labels_of_another,
        (
            "data/models.yaml: labels of tiny are of gemma-2-2b/1-gemmascope-mlp-16k",
            "layer_1/width_16k/canonical of the release gemma-scope-2b-pt-res-canonical",
            "write model: gemma-2-2b and sae: 1-gemmascope-res-16k",
        ),
    ),
    Bad("labels of another number", neuronpedia("1-gemmascope-res-131k"), ("131k", "sae.d_sae is 64", "name the one")),
]
CONCEPTS = [
    Bad(
        "no concepts",
        concepts(None),
        ("data/models.yaml: concepts.path of tiny is data/concepts.yaml", "does not exist", "correct the path"),
    ),
    Bad("concepts without others", concepts({"others": []}), ("data/concepts.yaml: others is empty", "give 2 or more")),
    Bad(
        "concept of one text",
        concepts({"concepts": [{"name": "sea", "texts": ["Waves."]}]}),
        ("data/concepts.yaml: concepts.0.texts has 1 item", "give 2 or more"),
    ),
    Bad(
        "blank text of a concept",
        concepts({"concepts": [SEA | {"texts": ["The waves roll in.", " "]}]}),
        ("data/concepts.yaml: concepts.0.texts.1 is ' '", "must hold words", "write a text, or remove it"),
    ),
    Bad("concept twice", concepts({"concepts": [SEA, SEA]}), ("concepts.yaml", "'sea'", "twice", "merge")),
    Bad("layer of concepts", concepts({}, layer=9), ("data/models.yaml: tiny: concepts.layer is 9", "choose 0 to 2")),
]
FETCH = ("fetch", MODEL)
SOURCES = [
    Bad(
        "no folder",
        lambda root: None,
        ("data/models.yaml: tiny", "models/tiny does not exist", "correct its path, which starts at"),
        FETCH,
    ),
    Bad(
        "a file for a folder",
        lambda root: ((root / "models").mkdir(), (root / "models/tiny").write_text("x")),
        ("data/models.yaml: tiny", "models/tiny is a file", "name the folder"),
        FETCH,
    ),
    Bad(
        "folder without config",
        local(lambda f: (f / "config.json").unlink()),
        ("data/models.yaml: tiny", "models/tiny has no config.json", "save_pretrained"),
        FETCH,
    ),
    Bad(
        "folder without tokenizer",
        local(lambda f: (f / "tokenizer.json").unlink()),
        ("data/models.yaml: tiny", "models/tiny has no tokenizer", "save_pretrained"),
        FETCH,
    ),
    Bad(
        "folder without template",
        local(lambda f: (f / "chat_template.jinja").unlink()),
        ("data/models.yaml: tiny", "no chat template", "chat_template.jinja", "save_pretrained"),
        FETCH,
    ),
    Bad(
        "pickled weights",
        local(lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")),
        ("data/models.yaml: tiny", "models/tiny", "pickle", "save_pretrained"),
        FETCH,
    ),
    Bad(
        "adapter for a model",
        local(lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors")),
        ("data/models.yaml: tiny", "is an adapter", "write kind: adapter", "tuned_from"),
        FETCH,
    ),
    Bad(
        "folder of LFS pointers",
        local(lambda f: (f / "model.safetensors").write_text(LFS)),
        ("data/models.yaml: tiny", "Git LFS pointer", "run `git lfs pull` in models/tiny"),
        FETCH,
    ),
    Bad(
        "folder with truncated weights",
        local(lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9])),
        ("data/models.yaml: tiny", "models/tiny", "truncated", "download or copy it again"),
        FETCH,
    ),
]
BAD = [*PARAMETERS, *ENTRIES, *FILES, *SELECTION, *REGISTRY, *PROMPTS, *MODELS, *SAES, *LABELS, *CONCEPTS, *SOURCES]
