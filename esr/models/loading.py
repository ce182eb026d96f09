"""Load models and tokenizers of the registry from the folders of the stage `fetch`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch

from esr.config.registry import model_entry
from esr.config.schema import ConfigError
from esr.models.chat import end_of_turn, use_template
from esr.models.devices import compute_dtype, device
from esr.models.vllm import VllmModel
from esr.paths import ROOT, data_dir
from esr.storage.digests import file_stamp


def model_folder(model_id: str) -> Path:
    """Folder of a fetched model. Raises ConfigError when the id is unknown or the model is not fetched."""
    model_entry(model_id)
    folder = data_dir("fetch", model_id)
    if not (folder / "config.json").exists():
        raise ConfigError(f"{folder} holds no model: run `dvc repro fetch` first.")
    return folder


def load_model(model_id: str, dtype: torch.dtype | None = None, adapter: Path | None = None):
    """The causal language model in evaluation mode on `device()`, with the LoRA weights in `adapter` merged.

    dtype: `compute_dtype()` by default. Weights are merged in float32 and rounded once; layers without an adapter keep
    their bits. Raises FileNotFoundError when `adapter` holds no weights.
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
    """The tokenizer, which renders chats as the entry's `template` says."""
    from transformers import AutoTokenizer

    return use_template(AutoTokenizer.from_pretrained(model_folder(model_id)), model_entry(model_id).template)


def resident_model(model_id: str, adapter: str = ""):
    """Model and tokenizer, loaded once per process while their files stay, so workers keep them between chunks.

    The model is what the `backend` of its entry runs: a transformers model, or a `VllmModel`. adapter: folder of LoRA
    weights, relative to the repository's root; "" for none. Raises ConfigError for an adapter with vLLM.
    """
    entry = model_entry(model_id)
    if entry.backend == "vllm":
        if adapter:
            raise ConfigError(
                f"{model_id} runs on vLLM, which gets no adapter here ({adapter}): add an entry with the merged model, "
                "or write `backend: transformers`."
            )
        return _resident_vllm(model_id, json.dumps(entry.vllm, sort_keys=True), _stamps(model_folder(model_id)))
    folder = ROOT / adapter if adapter else None
    return _resident(model_id, folder, _stamps(model_folder(model_id)), _stamps(folder) if folder else ())


@lru_cache(maxsize=1)
def _resident(model_id: str, adapter: Path | None, *_stamps: tuple):
    return load_model(model_id, adapter=adapter), load_tokenizer(model_id)


@lru_cache(maxsize=1)
def _resident_vllm(model_id: str, options: str, *_stamps: tuple):
    dtype = str(compute_dtype()).removeprefix("torch.")
    return VllmModel(model_folder(model_id), dtype, json.loads(options)), load_tokenizer(model_id)


def _stamps(folder: Path) -> tuple:
    """Names and stamps of a folder's files: an adapter trained again in the same place is loaded again."""
    return tuple((path.name, *file_stamp(path)) for path in sorted(folder.glob("*")) if path.is_file())


def stop_tokens(model, tokenizer) -> list[int]:
    """Ids of the tokens that end a response: those of the generation config, else the tokenizer's EOS, and the token
    with which the chat template ends a turn, lest a response runs on into another role.

    Raises ConfigError when there is none.
    """
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    found = [*(ends if isinstance(ends, list) else [ends]), end_of_turn(tokenizer)]
    stops = list(dict.fromkeys(token for token in found if token is not None))
    if not stops:
        raise ConfigError(
            f"{tokenizer.name_or_path or 'The model'} has no stop token in generation_config.json, tokenizer or chat "
            "template, and its responses would never end: set eos_token_id in generation_config.json."
        )
    return stops
