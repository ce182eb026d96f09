"""Merge an adapter into its base model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from esr.models.loading import load_model, load_tokenizer, model_folder
from esr.storage.files import replacing


def merge(model_id: str, adapter: Path, folder: Path) -> None:
    """Write the tuned model to `folder`: bfloat16 weights, configuration, tokenizer and licence.

    Raises FileNotFoundError when `adapter` holds no weights.
    """
    tuned = load_model(model_id, torch.bfloat16, adapter)
    with replacing(folder) as new:
        tuned.save_pretrained(new)
        load_tokenizer(model_id).save_pretrained(new)
        for licence in model_folder(model_id).glob("LICENSE*"):
            shutil.copy(licence, new / licence.name)
