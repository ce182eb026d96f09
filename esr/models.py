"""Loading what the registry names: models, tokenizers, SAEs and their decoder directions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from esr.config import ConfigError, model_entry
from esr.interventions import Readout
from esr.paths import ROOT, data_dir

CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM: as torch.cpu.get_capabilities names them


def device() -> torch.device:
    """The GPU where there is one, else the CPU; ESR_DEVICE overrides."""
    return torch.device(os.environ.get("ESR_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def compute_dtype() -> torch.dtype:
    """bfloat16 where `device()` multiplies it, else float32.

    Without instructions for it (x86 without AVX512_BF16 or AMX) a CPU emulates it; with AVX2 alone PyTorch multiplies
    bfloat16 element by element: 1.3 GFLOP/s, where float32 reaches 100 (AMD Zen 3, two cores). Weights are kept as
    bfloat16 on disk either way.
    """
    here = device().type
    if here == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif here == "cpu":
        able = torch.cpu.get_capabilities()
        fast = torch.backends.mkldnn.is_available() and any(able.get(name) for name in CPU_BFLOAT16)
    else:
        fast = True
    return torch.bfloat16 if fast else torch.float32


def model_folder(model_id: str) -> Path:
    model_entry(model_id)
    folder = data_dir("fetch", model_id)
    if not (folder / "config.json").exists():
        raise ConfigError(f"{folder} holds no model: run `dvc repro fetch` first.")
    return folder


def load_model(model_id: str, dtype: torch.dtype | None = None, adapter: Path | None = None):
    """The causal language model, in evaluation mode, on `device()`; with `adapter`, LoRA weights merged into it.

    dtype: `compute_dtype()` where none is given. Merged weights are added up in float32 and rounded once; layers
    without an adapter keep their bits. Raises FileNotFoundError when `adapter` holds none.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = dtype or compute_dtype()
    loaded = torch.float32 if adapter else dtype
    model = AutoModelForCausalLM.from_pretrained(model_folder(model_id), dtype=loaded)
    if adapter:
        from peft import PeftModel

        if not (adapter / "adapter_model.safetensors").exists():
            raise FileNotFoundError(f"{adapter} holds no adapter: run the stage that trains it (dvc repro finetune).")
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload().to(dtype)
    return model.eval().to(device())


def load_tokenizer(model_id: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(model_id))


@lru_cache(maxsize=1)
def resident_model(model_id: str, adapter: str = ""):
    """Model and tokenizer, loaded once in a process: what a worker keeps between chunks.

    adapter: folder of LoRA weights, relative to the repository's root; "" for none.
    """
    return load_model(model_id, adapter=ROOT / adapter if adapter else None), load_tokenizer(model_id)


def load_sae(model_id: str):
    """The SAELens SAE of the registry. Importing sae_lens takes seconds: call this only where latents are read."""
    from sae_lens import SAE

    source = model_entry(model_id).sae
    if source.kind == "folder":
        return SAE.load_from_disk(ROOT / source.path, device=str(device()))
    sae = SAE.from_pretrained(source.release, source.id, device=str(device()))
    sae.fold_W_dec_norm()
    return sae


def load_directions(model_id: str, latents: Sequence[int]) -> Float[Tensor, "latents d_model"]:
    """Unit decoder directions of `latents`, float32: a boost is then a length in the residual stream."""
    weights, _ = _sae_weights(model_id)
    decoder = weights("W_dec")[list(latents)].float()
    return decoder / decoder.norm(dim=-1, keepdim=True)


def load_readout(model_id: str, latents: Sequence[int]) -> Readout:
    """What reads and ablates `latents` alone, on `device()`.

    Raises ConfigError for an SAE whose latents depend on each other (top-k) or that rescales its input.
    """
    weights, config = _sae_weights(model_id)
    kind, scaling = config["architecture"], config.get("normalize_activations", "none")
    if kind not in ("standard", "jumprelu") or scaling != "none":
        raise ConfigError(
            f"The SAE of {model_id} is {kind} with normalize_activations {scaling}: single latents can be read only "
            "from a standard or jumprelu SAE with none; convert it with SAELens first."
        )
    chosen = list(latents)
    bias = weights("b_enc")[chosen]
    parts = {
        "encoder": weights("W_enc")[:, chosen],
        "bias": bias,
        "threshold": weights("threshold")[chosen] if kind == "jumprelu" else torch.zeros_like(bias),
        "center": weights("b_dec") * float(config.get("apply_b_dec_to_input", True)),
        "decoder": weights("W_dec")[chosen],
    }
    return Readout(tuple(chosen), **{name: part.float().contiguous().to(device()) for name, part in parts.items()})


def _sae_weights(model_id: str) -> tuple[Callable[[str], Tensor], dict]:
    """A function from a weight's name to the weight, and the SAE's configuration; a folder needs no sae_lens."""
    source = model_entry(model_id).sae
    if source.kind == "folder":
        folder = ROOT / source.path
        file = safe_open(folder / "sae_weights.safetensors", framework="pt")
        return file.get_tensor, json.loads((folder / "cfg.json").read_text())
    sae = load_sae(model_id)
    state = {name: weight.detach().cpu() for name, weight in sae.state_dict().items()}
    return state.__getitem__, sae.cfg.to_dict()


def stop_tokens(model) -> list[int]:
    """Tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def chat_tokens(tokenizer, prompt: str, prefill: Sequence[int] = ()) -> tuple[int, ...]:
    """Token ids of one user turn in the model's chat template, the answer begun with the tokens `prefill`."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return (*tokenizer(text, add_special_tokens=False).input_ids, *prefill)
