"""A complete tiny repository on disk: registry, models, tokenizer, adapter, SAEs in every kind of source, concepts.

Weights come from a generator whose stream is fixed for all versions of NumPy, not from torch's initialisation.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from esr.storage.digests import digest

WORDS = [
    "<pad>", "<s>", "</s>", "<unk>", "<user>", "<model>", "tell", "me", "about", "bread", "sea", "horses", "please",
    *(f"word{i}" for i in range(84)),
]  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYER, D_SAE = 1, 16
SAE = {"layer": LAYER, "d_sae": D_SAE}
RELEASE = {"release": "gemma-scope-2b-pt-res", "id": "layer_16/width_16k/average_l0_78"}
HUB = {"id": "someone/saes", "path": "layer_1", "revision": "main"}
ADAPTER = "data/finetune/tiny/selfcorrect"
SOURCES = {  # model id: what its steering vectors come from
    "tiny": {"sae": {"kind": "folder", "path": "data/train_sae/tiny", **SAE}},
    "tiny-whole": {"sae": {"kind": "folder", "path": "data/train_sae/tiny", **SAE}},
    "tiny-release": {"sae": {"kind": "release", **RELEASE, **SAE}},
    "tiny-hub": {"sae": {"kind": "hub", **HUB, **SAE}},
    "tiny-concepts": {"concepts": {"path": "data/concepts.yaml", "layer": LAYER}},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def draw(name: str, shape, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers that depend on the name alone."""
    stream = np.random.RandomState(int(digest(name)[:8], 16))  # frozen since NumPy 1.17
    return torch.from_numpy(stream.standard_normal(tuple(shape)) * scale).float()


def tiny_model(kind: str = "llama"):
    """A model with three layers, whose logits are far apart."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    else:
        special = {"query_pre_attn_scalar": 8, "sliding_window": 6, "tie_word_embeddings": False}
        model = Gemma2ForCausalLM(Gemma2Config(**SIZES, **special, attn_implementation="eager"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if "norm" in name and kind == "llama" else 0.0
            small = "norm" in name or (kind == "gemma2" and name.startswith("lm_head"))  # below the cap of the logits
            weight.copy_(centre + draw(f"{kind} {name}", weight.shape, 0.1 if small else 0.5))
    return model.eval()


def tiny_tokenizer():
    """One token a word, with a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE, **special)


def sae_weights() -> dict[str, torch.Tensor]:
    """A JumpReLU SAE whose decoder rows do not have unit norm."""
    decoder = draw("decoder", (D_SAE, 32))
    return {
        "W_enc": decoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": draw("b_enc", (D_SAE,), 0.1),
        "b_dec": draw("b_dec", (32,), 0.1),
        "threshold": torch.full((D_SAE,), 0.5),
    }


def build(root: Path) -> Path:
    """Write the repository; returns `root`."""
    registry = {name: _entry(name) for name in SOURCES}
    write(root / "data/models.yaml", yaml.safe_dump(registry, sort_keys=False))
    for name in SOURCES:
        _write_model(root / "data/fetch" / name, "20KB" if name == "tiny" else "1GB")
        write(
            root / "data/corpus" / name / "summary.json",
            json.dumps({"median_residual_norm": 8.0, "median_sae_norm": 8.0}),
        )
    _write_adapter(root / ADAPTER)
    _write_sae(root / "data/train_sae/tiny")
    write(root / "data/train_sae/tiny/training.json", "{}")
    write(root / "data/concepts.yaml", "request: tell me\n")
    directions = root / "data/concepts/tiny-concepts/directions.safetensors"
    directions.parent.mkdir(parents=True)
    save_file({"directions": draw("directions", (D_SAE, 32))}, directions)
    snapshot = _snapshot(root, "google/gemma-scope-2b-pt-res")
    weights = {name: weight.numpy() for name, weight in sae_weights().items()}
    place = snapshot / RELEASE["id"]
    place.mkdir(parents=True)
    np.savez(place / "params.npz", **weights)
    _write_sae(_snapshot(root, HUB["id"]) / HUB["path"])
    return root


def use(root: Path, patch) -> None:
    """Work in the repository at `root`. patch: pytest's MonkeyPatch."""
    from huggingface_hub import constants

    from esr import paths
    from esr.config import registry
    from esr.engine import workers
    from esr.models import loading
    from esr.sae import formats
    from esr.steering import provenance

    for module in (paths, loading, formats, provenance):
        patch.setattr(module, "ROOT", root)
    for name in ("_download", "_release_config"):  # which keep their results for a process
        patch.setattr(formats, name, cache(getattr(formats, name).__wrapped__))
    patch.setattr(paths, "DATA", root / "data")
    patch.setattr(registry, "REGISTRY", root / "data/models.yaml")
    patch.setattr(registry, "load_yaml", lambda path: _parsed(path.read_text()))
    patch.setattr(workers, "CACHE", root / "cache")
    patch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setenv("ESR_DEVICE", "cpu")


@cache
def _parsed(text: str) -> dict:
    """YAML parsed in C, once: the tests read the registry a thousand times."""
    return yaml.load(text, yaml.CSafeLoader)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _entry(name: str) -> dict:
    return {
        "source": {"kind": "folder", "path": f"models/{name}"},
        "license": "MIT",
        "n_layers": 3,
        "steer_layer": LAYER,
        **SOURCES[name],
        "boost": {"min": 0.0, "max": 1.2, "prior_mean": 0.45, "prior_sd": 0.2},
        "sampling": {"repetition_penalty": 1.1},
    }


def _write_model(folder: Path, shard: str) -> None:
    tiny_model().save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(folder)
    write(folder / "generation_config.json", json.dumps({"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0}))
    write(folder / "special_tokens_map.json", json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    for name in ("README.md", "LICENSE", "source.json"):
        write(folder / name, "{}")


def _write_adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], layers_to_transform=[2], layers_pattern="layers")
    adapted = get_peft_model(tiny_model(), config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                weight.copy_(draw(name.removeprefix("base_model.model."), weight.shape, 0.5))
    adapted.save_pretrained(folder)
    write(folder / "curve.jsonl", "{}\n")


def _write_sae(folder: Path) -> None:
    config = {
        "architecture": "jumprelu", "d_in": 32, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.1.hook_resid_post"},
    }  # fmt: skip
    write(folder / "cfg.json", json.dumps(config))
    save_file(sae_weights(), folder / "sae_weights.safetensors")


def _snapshot(root: Path, repository: str) -> Path:
    """Folder of a repository's files in the hub's cache, at the commit of its branch main."""
    store = root / "hub" / f"models--{repository.replace('/', '--')}"
    write(store / "refs" / "main", COMMIT)
    write(store / "snapshots" / COMMIT / "README.md", "An SAE.")
    return store / "snapshots" / COMMIT
