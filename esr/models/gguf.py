"""Convert quantized models from GGUF to safetensors, which loads in one second instead of twenty.

transformers refuses to save a model loaded from GGUF, hence the copy into a model built from a clean config.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from esr.models.failures import FetchError

TRACES = {"quantization_config", "dtype", "torch_dtype", "model_type", "transformers_version", "architectures"}
ARCHITECTURES = ("llama", "qwen2")
QWEN2_ENDS = ("<|im_end|>", "<|endoftext|>")  # either ends a response; the file names the first alone
UNREAD = ("rope.scaling.type", "attention.sliding_window")  # metadata that transformers ignores, below the architecture


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file of Llama or Qwen2 and write model (bfloat16) and tokenizer to the existing `folder`.

    Equal files and library versions give equal bytes; 135M parameters take about 10 s on one core. Raises ValueError
    for another architecture, a missing weight, an unknown pre-tokenizer and metadata that transformers would ignore,
    FetchError for a damaged file.
    """
    import torch
    from gguf import get_tensor_name_map
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers parses the file for config, weights and tokenizer, seconds each, and builds the table of tensor names
    # for every module
    parsed = _parse(gguf)
    splitter = pre_tokenizer(parsed, gguf.name)
    once = patch.multiple("gguf", GGUFReader=lambda _path: parsed, get_tensor_name_map=cache(get_tensor_name_map))
    with once, _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, output_loading_info=True
        )
        quantized, loading = loaded  # a pair with output_loading_info
        if missing := sorted(set(loading["missing_keys"]) - set(quantized.all_tied_weights_keys)):
            raise ValueError(f"{gguf.name} lacks {missing[0]}, which would be left random.")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.backend_tokenizer.pre_tokenizer = splitter
        special = _special_tokens(parsed, tokenizer, quantized.config)
        model = _clean_copy(quantized, special)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(settings.read_text()).items() if k not in ("is_local", "local_files_only")}
    settings.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)


def _parse(gguf: Path):
    from gguf import GGUFReader

    try:
        return GGUFReader(gguf)
    except (ValueError, LookupError) as error:  # whatever the first missing byte leads to
        raise FetchError(f"{gguf.name} is damaged or truncated ({error}): download it again.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice on packed weights: either would appear in executed notebooks."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def pre_tokenizer(parsed, name: str):
    """The pre-tokenizer that `tokenizer.ggml.pre` of the file `name` specifies and transformers may ignore.

    Without its split at digits, a blank line before a number ("\\n\\n1.") becomes another token than in training.
    parsed: a `gguf.GGUFReader`. Raises ValueError for an unknown architecture or pre-tokenizer.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    architecture, rule = _text(parsed, "general.architecture"), _text(parsed, "tokenizer.ggml.pre")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{name} is a {architecture} model, and only {' and '.join(ARCHITECTURES)} models are converted from GGUF."
        )
    if unread := [key for key in UNREAD if parsed.get_field(f"{architecture}.{key}")]:
        raise ValueError(f"{name} sets {unread[0]}, which is not converted from GGUF.")
    by_bytes = ByteLevel(add_prefix_space=False)
    words = Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    known = {
        "smollm": Sequence([Digits(individual_digits=True), by_bytes]),
        "gpt-2": by_bytes,
        "qwen2": Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)]),
    }
    if rule not in known:
        raise ValueError(
            f"The tokenizer of {name} splits text by the rule {rule!r}, "
            f"and only {' and '.join(known)} are converted from GGUF."
        )
    return known[rule]


def _text(parsed, key: str) -> str:
    return field.contents() if (field := parsed.get_field(key)) else "absent"


def _special_tokens(parsed, tokenizer, config) -> dict[str, Any]:
    """Ids of bos, eos and pad for config and generation config; sets what the rule `qwen2` implies in the tokenizer.

    Qwen2 normalizes to NFC, has no BOS, and ends a response with either of two tokens.
    """
    special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if _text(parsed, "tokenizer.ggml.pre") == "qwen2":
        from tokenizers.normalizers import NFC

        tokenizer.backend_tokenizer.normalizer = NFC()
        tokenizer.bos_token = None
        ids = [tokenizer.convert_tokens_to_ids(token) for token in QWEN2_ENDS if token in tokenizer.get_vocab()]
        special |= {"bos_token_id": None, "eos_token_id": list(dict.fromkeys([special["eos_token_id"], *ids]))}
    return special


def _clean_copy(quantized, special: dict[str, Any]):
    """The model without traces of GGUF, with the same weights in memory."""
    import torch
    from transformers import GenerationConfig

    config = type(quantized.config)(**_clean(quantized.config.to_dict()))
    for name, ids in special.items():
        if name != "eos_token_id":  # generation stops at all of them; the config names the first
            setattr(config, name, ids)
    with torch.device("meta"):
        model = type(quantized)(config).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)  # the study chooses how to sample
    return model


def _clean(config: dict) -> dict:
    """A config loaded from GGUF without traces of loading, and with the float32 epsilon rounded to 1e-05."""
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k not in TRACES | {"unk_token_id"}}
    return kept | {"rms_norm_eps": float(f"{kept['rms_norm_eps']:.6g}")}
