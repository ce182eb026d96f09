"""A fetched model's files: configuration, tokenizer, and shapes of the weights from their headers; no weights."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from textwrap import shorten

from huggingface_hub import parse_local_safetensors_file_metadata

from esr.config.schema import ConfigError
from esr.models.layout import check_layout, weight_files
from esr.models.loading import load_tokenizer


class ModelFiles:
    """The files of a model in the folder where it was fetched, each read when first needed.

    Reading raises ConfigError or FetchError with a sentence on the file.
    """

    def __init__(self, model: str, folder: Path):
        self.model, self.folder = model, folder

    @property
    def are_there(self) -> bool:
        return (self.folder / "config.json").exists()

    def check(self, chat: bool) -> None:
        """Raise unless the model was fetched and all files are whole. chat: with a chat template."""
        if not self.are_there:
            raise ConfigError(
                f"{self.model} is not fetched, {self.folder / 'config.json'} does not exist: "
                f"run `make fetch MODELS={self.model}`."
            )
        check_layout(self.folder, f"The folder {self.folder}", chat)

    @cached_property
    def config(self):
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder)
        except Exception as error:  # of any configuration class
            raise ConfigError(
                f"{self.folder / 'config.json'} is no configuration that transformers reads ({first_sentence(error)}): "
                "choose a model whose architecture is part of transformers; code of a model's authors is never run."
            ) from None

    @cached_property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every weight, as safetensors spells it."""
        found = {}
        for file in weight_files(self.folder):
            for name, info in parse_local_safetensors_file_metadata(file).tensors.items():
                found[name] = tuple(info.shape), str(info.dtype)
        return found

    @cached_property
    def n_parameters(self) -> int:
        metadata = map(parse_local_safetensors_file_metadata, weight_files(self.folder))
        return sum(info.parameter_count for file in metadata for info in file.tensors.values())

    @cached_property
    def tokenizer(self):
        """The tokenizer, which renders chats as the entry's `template` says."""
        try:
            return load_tokenizer(self.model)
        except Exception as error:  # of any tokenizer class
            raise ConfigError(
                f"The tokenizer in {self.folder} cannot be loaded, as its tokenizer.json is not one that transformers "
                f"reads ({first_sentence(error)}): replace it at the model's source by that of the original model, and "
                f"run `make fetch MODELS={self.model}`."
            ) from None

    @cached_property
    def generation_config(self):
        from transformers import GenerationConfig

        if (self.folder / "generation_config.json").exists():
            return GenerationConfig.from_pretrained(self.folder)
        return GenerationConfig.from_model_config(self.config)

    def cache_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes of the keys and values of one position in all layers."""
        config = self.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * bytes_per_value


def first_sentence(error: Exception) -> str:
    """The first sentence of the error's message, or its type."""
    sentence = re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__
    return shorten(sentence, 240, placeholder=" ...").rstrip(".: ")
