"""Merge an adapter into its base model."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch

from esr.models.failures import FetchError
from esr.models.layout import check_file, tensors_of
from esr.models.loading import load_model, load_tokenizer, model_folder
from esr.storage.files import replacing

WEIGHTS = "adapter_model.safetensors"


def merge(model_id: str, adapter: Path, folder: Path) -> None:
    """Write the tuned model to `folder`: bfloat16 weights, configuration, tokenizer and licence.

    Raises FileNotFoundError when `adapter` holds no weights, and FetchError when they do not fit the model.
    """
    if (adapter / WEIGHTS).exists():
        check_adapter(model_id, adapter)
    tuned = load_model(model_id, torch.bfloat16, adapter)
    with replacing(folder) as new:
        tuned.save_pretrained(new)
        load_tokenizer(model_id).save_pretrained(new)
        for licence in model_folder(model_id).glob("LICENSE*"):
            shutil.copy(licence, new / licence.name)


def check_adapter(model_id: str, adapter: Path) -> None:
    """Raise FetchError unless the LoRA weights in `adapter` fit the model's layers; loads no weights."""
    name, settings = f"The adapter {adapter.name}", adapter / "adapter_config.json"
    if not settings.is_file():
        raise FetchError(f"{name} has no {settings.name}: give a folder that PEFT's save_pretrained wrote.")
    for path in (settings, adapter / WEIGHTS):
        check_file(path, name)
    expected, found = _expected_tensors(model_id, adapter), tensors_of(adapter / WEIGHTS, name)
    missing = sorted(set(expected) - set(found))
    unknown = sorted(tensor for tensor in set(found) - set(expected) if ".lora_" in tensor)
    wrong = [tensor for tensor in expected if tensor in found and found[tensor] != expected[tensor]]
    if wrong:
        problem = f"{wrong[0]} is {found[wrong[0]]}, where model and {settings.name} give {expected[wrong[0]]}"
    elif missing or unknown:
        problem = f"it lacks {missing[0]}" if missing else f"the model has no place for {unknown[0]}"
    else:
        return
    raise FetchError(f"{name} does not fit {model_id}: {problem}; name the model it was trained on, tuned_from.")


def _expected_tensors(model_id: str, adapter: Path) -> dict[str, list[int]]:
    """Shape of every tensor that PEFT would train on this model by the adapter's configuration."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    name = f"The adapter {adapter.name}"
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        if config.peft_type != "LORA":
            raise FetchError(f"{name} is of type {config.peft_type}, and only LORA adapters are merged.")
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder(model_id)))
            state = get_peft_model_state_dict(get_peft_model(model, config))
    except (ValueError, KeyError, TypeError) as error:  # of PEFT
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise FetchError(
            f"{name} does not fit {model_id} ({reason}): name the model it was trained on, tuned_from."
        ) from error
    return {tensor: list(values.shape) for tensor, values in state.items()}
