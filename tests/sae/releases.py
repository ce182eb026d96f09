"""Writers of tiny SAEs in the file formats of published releases, into a cache as the hub's client lays it out.

With HF_HUB_CACHE at the cache and HF_HUB_OFFLINE=1, the hub's client and SAELens find them as if downloaded.
"""

import json
from functools import cache
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import save_file

from esr.sae import formats

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tiny_sae(d_in=32, d_sae=64, seed=0, thresholds=True):
    """Random weights by SAELens' names; decoder rows have norms from 0.25 to 4, about half of the latents fire."""
    draw = torch.Generator().manual_seed(seed)
    decoder = torch.randn(d_sae, d_in, generator=draw)
    norms = torch.logspace(-2, 2, d_sae, base=2)[torch.randperm(d_sae, generator=draw)]
    weights = {
        "W_dec": decoder / decoder.norm(dim=-1, keepdim=True) * norms[:, None],
        "W_enc": torch.randn(d_in, d_sae, generator=draw) / d_in**0.5,
        "b_enc": 0.1 * torch.randn(d_sae, generator=draw),
        "b_dec": 0.5 * torch.randn(d_in, generator=draw),
    }
    return weights | ({"threshold": 0.1 + 0.4 * torch.rand(d_sae, generator=draw)} if thresholds else {})


def hub_file(place: Path, repository: str, name: str) -> Path:
    """Where the cache at `place` has the file `name` of a repository at `main`."""
    root = place / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    path = root / "snapshots" / COMMIT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def offline_cache(path: Path, monkeypatch) -> Path:
    """`path` as the cache of the hub's client in this process, which may then not use the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(formats, "_download", cache(formats._download.__wrapped__))
    monkeypatch.setattr(formats, "_release_config", cache(formats._release_config.__wrapped__))
    return path


def write_folder(folder: Path, weights, architecture="jumprelu", hook="blocks.1.hook_resid_post", **changes):
    """A SAELens folder: sae_weights.safetensors and cfg.json."""
    folder.mkdir(parents=True, exist_ok=True)
    d_sae, d_in = weights["W_dec"].shape
    config = {
        "architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": hook},
    }  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config | changes))


def write_release(place: Path, release: str, sae_id: str, weights) -> Path:
    """Write `weights` as the SAE `sae_id` of a release, in the release's format; returns the file of the weights."""
    listed = get_pretrained_saes_directory()[release]
    path = listed.saes_map[sae_id]
    return WRITERS[listed.conversion_func or "sae_lens"](place, listed.repo_id, path, weights)


def write_saelens(place, repository, path, weights):
    file = hub_file(place, repository, f"{path}/sae_weights.safetensors")
    hook = f"blocks.{path.partition('blocks.')[2].partition('.')[0]}.hook_resid_post"
    write_folder(file.parent, weights, "jumprelu" if "threshold" in weights else "standard", hook)
    return file


def write_goodfire(place, repository, path, weights):
    """Two linear layers in a pickle, bfloat16."""
    linear = {"encoder_linear": ("W_enc", "b_enc"), "decoder_linear": ("W_dec", "b_dec")}
    state = {}
    for layer, (matrix, bias) in linear.items():
        state[f"{layer}.weight"] = weights[matrix].T.contiguous().bfloat16()
        state[f"{layer}.bias"] = weights[bias].bfloat16()
    torch.save(state, file := hub_file(place, repository, path))
    return file


def write_gemma_scope(place, repository, path, weights):
    """params.npz, uncompressed, float32."""
    np.savez(
        file := hub_file(place, repository, f"{path}/params.npz"), **{name: t.numpy() for name, t in weights.items()}
    )
    return file


def write_gemma_scope_2(place, repository, path, weights):
    """params.safetensors with lower-case names, and config.json."""
    file = hub_file(place, repository, f"{path}/params.safetensors")
    save_file({name.replace("W_", "w_"): tensor for name, tensor in weights.items()}, file)
    layer = path.partition("layer_")[2].partition("_")[0]
    model = repository.rpartition("/")[2].replace("gemma-scope-2", "gemma-v3")
    config = {
        "architecture": "jump_relu", "model_name": model, "hf_hook_point_in": f"model.layers.{layer}.output",
        "width": len(weights["W_dec"]), "l0": 60,
    }  # fmt: skip
    (file.parent / "config.json").write_text(json.dumps(config))
    return file


def write_dictionary_learning(place, repository, path, weights):
    """ae.pt of a BatchTopK dictionary with one threshold for all latents, and config.json."""
    file = hub_file(place, repository, f"{path}/ae.pt")
    d_sae, d_in = weights["W_dec"].shape
    state = {
        "encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(), "b_dec": weights["b_dec"],
        "threshold": weights["threshold"][0].clone(), "k": torch.tensor(8),
    }  # fmt: skip
    torch.save(state, file)
    trainer = {
        "dict_class": "BatchTopKSAE", "activation_dim": d_in, "dict_size": d_sae, "k": 8, "lm_name": "org/model",
        "layer": int(path.partition("layer_")[2].partition("/")[0]),
    }  # fmt: skip
    (file.parent / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 1024}}))
    return file


def write_deepseek(place, repository, path, weights):
    state = {
        "encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(), "decoder.bias": weights["b_dec"],
    }  # fmt: skip
    torch.save(state, file := hub_file(place, repository, path))
    return file


def write_llama_scope(place, repository, path, weights):
    """Weights of an SAE on scaled residuals, whose one threshold is in hyperparams.json."""
    file = hub_file(place, repository, f"{path}/checkpoints/final.safetensors")
    d_sae, d_in = weights["W_dec"].shape
    state = {
        "encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(), "decoder.bias": weights["b_dec"],
    }  # fmt: skip
    save_file(state, file)
    layer = path.partition("-L")[2].partition("R")[0]
    config = {
        "d_model": d_in, "d_sae": d_sae, "jump_relu_threshold": 0.3, "hook_point_in": f"blocks.{layer}.hook_resid_post",
        "dataset_average_activation_norm": {"in": 2.0},
    }  # fmt: skip
    hub_file(place, repository, f"{path}/hyperparams.json").write_text(json.dumps(config))
    return file


WRITERS = {
    "sae_lens": write_saelens,
    "goodfire": write_goodfire,
    "gemma_2": write_gemma_scope,
    "gemma_3": write_gemma_scope_2,
    "dictionary_learning_1": write_dictionary_learning,
    "deepseek_r1": write_deepseek,
    "llama_scope": write_llama_scope,
}
