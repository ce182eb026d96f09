"""A fetched model's files: configuration, tokenizer, and shapes of the weights from their headers; no weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from esr.config.schema import ConfigError
from esr.models.loading import load_tokenizer

LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it


class ModelFiles:
    """A fetched model's files, each read when first needed. Reading raises ConfigError with a sentence on the file."""

    def __init__(self, model: str, folder: Path):
        self.model, self.folder = model, folder
        self.again = f"run `make fetch MODELS={model}` again"

    @cached_property
    def config(self):
        """The configuration of the language model; of its text part where it has others."""
        from transformers import AutoConfig

        path = self.folder / "config.json"
        if not path.exists():
            raise ConfigError(
                f"{self.model} is not fetched: {path} does not exist; run `make fetch MODELS={self.model}`."
            )
        if "auto_map" in self._read(path):
            raise ConfigError(
                f"{path} names code of the model's authors (auto_map), which is not run: "
                "only architectures that transformers contains are allowed; choose another model."
            )
        try:
            return AutoConfig.from_pretrained(self.folder).get_text_config()
        except Exception as error:  # of any configuration class
            raise ConfigError(
                f"{path} is no configuration that transformers can read ({first_line(error)}): "
                "correct it at the model's source."
            ) from None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Shape and dtype of every weight, from the headers of all files, which must be whole."""
        files = sorted(self.folder.glob("*.safetensors"))
        for index in self.folder.glob("*.safetensors.index.json"):
            named = set(self._read(index).get("weight_map", {}).values())
            if missing := sorted(named - {file.name for file in files}):
                raise ConfigError(
                    f"{self.folder} lacks {missing[0]}, one of the {len(named)} files that {index.name} names: "
                    f"{self.again}."
                )
        if not files:
            raise ConfigError(f"{self.folder} holds no weights: *.safetensors files are needed; {self.again}.")
        return {name: tensor for file in files for name, tensor in read_header(file, self.again).items()}

    @cached_property
    def tokenizer(self):
        try:
            return load_tokenizer(self.model)
        except ConfigError:
            raise
        except Exception as error:  # of any tokenizer class
            raise ConfigError(
                f"The tokenizer in {self.folder} cannot be loaded ({first_line(error)}): "
                "tokenizer.json as the library tokenizers writes it is needed; correct it at the model's source."
            ) from None

    @cached_property
    def generation_stops(self) -> list[int]:
        """Ids that generation_config.json, or else config.json, names as the ends of a response."""
        path = self.folder / "generation_config.json"
        ends = self._read(path).get("eos_token_id") if path.exists() else None
        ends = self.config.eos_token_id if ends is None else ends
        return [] if ends is None else list(ends) if isinstance(ends, list) else [ends]

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def cache_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes of the keys and values of one position in all layers."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * bytes_per_value

    def _read(self, path: Path) -> dict:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON ({first_line(error)}): {self.again}.") from None


def read_header(file: Path, again: str) -> dict[str, Tensor]:
    """Weights of a safetensors file, from its header. Raises ConfigError for a file that is not whole."""
    with file.open("rb") as start:
        if start.read(len(LFS)) == LFS:
            raise ConfigError(
                f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` where it came from, then {again}."
            )
    try:
        with safe_open(file, framework="np") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  # no mapping
            return {name: Tensor(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{file} ({file.stat().st_size:,} bytes) is cut off or damaged ({first_line(error)}): {again}."
        ) from None


def first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".: ")[:160]
