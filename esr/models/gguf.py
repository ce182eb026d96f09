"""Convert quantized models from GGUF to safetensors, which loads in one second instead of twenty.

transformers refuses to save a model loaded from GGUF, hence the copy into a model built from a clean config.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

TRACES = {"quantization_config", "dtype", "torch_dtype", "model_type", "transformers_version", "architectures"}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantize a Llama-architecture GGUF file and write model (bfloat16) and tokenizer to the existing `folder`.

    Equal files and library versions give equal bytes; 135M parameters take about 10 s on one core. Raises ValueError
    for another architecture, a missing weight and an unknown pre-tokenizer.
    """
    import torch
    from gguf import GGUFReader, get_tensor_name_map
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    # transformers parses the file for config, weights and tokenizer, seconds each, and builds the table of tensor names
    # for every module
    parsed = GGUFReader(gguf)
    splitter = pre_tokenizer(parsed, gguf.name)
    once = patch.multiple("gguf", GGUFReader=lambda _path: parsed, get_tensor_name_map=cache(get_tensor_name_map))
    with once, redirect_stderr(io.StringIO()):  # progress bars would appear in executed notebooks
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
        quantized, loading = loaded  # a pair with output_loading_info
        if missing := sorted(set(loading["missing_keys"]) - set(quantized.all_tied_weights_keys)):
            raise ValueError(f"{gguf.name} lacks {missing[0]}, which would be left random.")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = LlamaConfig(**_clean(quantized.config.to_dict()))
        model = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]  # transformers' decorator hides self
        model.load_state_dict(quantized.state_dict())
        special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**special)  # the study chooses how to sample
        tokenizer.backend_tokenizer.pre_tokenizer = splitter
        tokenizer.model_max_length = config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(settings.read_text()).items() if k not in ("is_local", "local_files_only")}
    settings.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)


def pre_tokenizer(parsed, name: str):
    """The pre-tokenizer that `tokenizer.ggml.pre` of the file `name` specifies and transformers ignores.

    Without its split at digits, a blank line before a number ("\\n\\n1.") becomes another token than in training.
    parsed: a `gguf.GGUFReader`. Raises ValueError for an unknown architecture or pre-tokenizer.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    architecture, rule = (
        field.contents() if (field := parsed.get_field(key)) else "absent"
        for key in ("general.architecture", "tokenizer.ggml.pre")
    )
    if architecture != "llama":
        raise ValueError(f"{name} is a {architecture} model, and only llama models are converted from GGUF.")
    by_bytes = ByteLevel(add_prefix_space=False)
    known = {"smollm": Sequence([Digits(individual_digits=True), by_bytes]), "gpt-2": by_bytes}
    if rule not in known:
        raise ValueError(
            f"The tokenizer of {name} splits text by the rule {rule!r}, "
            f"and only {' and '.join(known)} are converted from GGUF."
        )
    return known[rule]


def _clean(config: dict) -> dict:
    """A config loaded from GGUF without traces of loading, and with the float32 epsilon rounded to 1e-05."""
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k not in TRACES | {"unk_token_id"}}
    return kept | {"rms_norm_eps": float(f"{kept['rms_norm_eps']:.6g}")}
