"""Loading what the registry names: models, tokenizers, SAEs and their decoder directions."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from esr.config import ConfigError, model_entry
from esr.paths import ROOT, data_dir


def device() -> torch.device:
    """The GPU where there is one, else the CPU; ESR_DEVICE overrides."""
    return torch.device(os.environ.get("ESR_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def model_folder(model_id: str) -> Path:
    model_entry(model_id)
    folder = data_dir("fetch", model_id)
    if not (folder / "config.json").exists():
        raise ConfigError(f"{folder} holds no model: run `dvc repro fetch` first.")
    return folder


def load_model(model_id: str, dtype: torch.dtype = torch.bfloat16):
    """The causal language model, in evaluation mode, on `device()`."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(model_folder(model_id), dtype=dtype).eval().to(device())


def load_tokenizer(model_id: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(model_id))


@lru_cache(maxsize=1)
def resident_model(model_id: str):
    """Model and tokenizer, loaded once in a process: what a worker keeps between chunks."""
    return load_model(model_id), load_tokenizer(model_id)


def load_sae(model_id: str):
    """The SAELens SAE of the registry. Importing sae_lens takes seconds: call this only where latents are read."""
    from sae_lens import SAE

    source = model_entry(model_id).sae
    if source.kind == "folder":
        return SAE.load_from_disk(ROOT / source.path, device=str(device()))
    sae = SAE.from_pretrained(source.release, source.id, device=str(device()))
    sae.fold_W_dec_norm()
    return sae


def load_directions(model_id: str, latents: list[int]) -> Float[Tensor, "latents d_model"]:
    """Unit decoder directions of `latents`, float32: a boost is then a length in the residual stream."""
    from safetensors import safe_open

    source = model_entry(model_id).sae
    if source.kind == "folder":
        with safe_open(ROOT / source.path / "sae_weights.safetensors", framework="pt") as weights:
            decoder = weights.get_tensor("W_dec")[latents].float()
    else:
        decoder = load_sae(model_id).W_dec.detach()[latents].float().cpu()
    return decoder / decoder.norm(dim=-1, keepdim=True)


def stop_tokens(model) -> list[int]:
    """Tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def chat_tokens(tokenizer, prompt: str, prefill: str = "") -> tuple[int, ...]:
    """Token ids of one user turn in the model's chat template, the answer begun with `prefill`."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return tuple(tokenizer(text + prefill, add_special_tokens=False).input_ids)
