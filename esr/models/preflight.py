"""What a fetched model must satisfy before anything heavy runs; reads headers, configuration and tokenizer alone.

Each check returns what was found and what is needed, or raises an error in one sentence: what is wrong, where, what is
allowed and what to do. Not here: the engine, SAEs, the machine (esr.pipeline.preflight).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

from esr.config.registry import ModelEntry
from esr.config.schema import ConfigError
from esr.models.chat import chat_tokens
from esr.models.files import ModelFiles
from esr.models.loading import stop_tokens

DTYPES = ("BF16", "F16", "F32")  # of weights
EMBEDDING = "embed_tokens.weight"
PROBE = "Name a colour."  # a user message, to see what the template makes of it
Found = tuple[str, str]  # what was found and what is needed


@dataclass(frozen=True)
class Subject:
    """What is checked: a model's files and entry, and what the study asks of it. prompts: user messages."""

    entry: ModelEntry
    files: ModelFiles
    prompts: Sequence[str]
    max_new_tokens: int
    batch_size: int

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens of the longest prompt with its template."""
        return max(len(chat_tokens(self.files.tokenizer, prompt)) for prompt in self.prompts)


def check_files(subject: Subject) -> Found:
    """All files are there and whole."""
    subject.files.check(chat=subject.entry.steerable)
    return f"{subject.files.n_parameters / 1e6:,.1f} M parameters", "all files, whole"


def check_dtype(subject: Subject) -> Found:
    """The weights are of a dtype that is computed with."""
    files = subject.files
    method = (getattr(files.config, "quantization_config", None) or {}).get("quant_method")
    dtypes = sorted({dtype for _, dtype in files.tensors.values()})
    if wrong := [method] if method else [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise ConfigError(
            f"The weights in {files.folder} are quantized ({', '.join(wrong)}); {', '.join(DTYPES)} are allowed: "
            "name a source with plain weights."
        )
    return ", ".join(dtypes), f"one of {', '.join(DTYPES)}"


def check_layers(subject: Subject) -> Found:
    """The registry's number of layers is the model's. That layers are in range is checked with the registry."""
    found, stated, model = subject.files.config.num_hidden_layers, subject.entry.n_layers, subject.files.model
    if stated != found:
        raise ConfigError(
            f"data/models.yaml: n_layers of {model} is {stated}, but config.json in {subject.files.folder} has {found} "
            f"layers: write n_layers: {found}, and layers from 0 to {found - 1}."
        )
    return str(found), str(stated)


def check_vocabulary(subject: Subject) -> Found:
    """Every token of the tokenizer has a row in the embedding, of the width that the configuration names."""
    files, config = subject.files, subject.files.config
    shape = next((shape for name, (shape, _) in files.tensors.items() if name.endswith(EMBEDDING)), None)
    if shape is None:
        raise ConfigError(f"The weights in {files.folder} have no {EMBEDDING}: give all weights of a language model.")
    rows, size = shape[0], max(files.tokenizer.get_vocab().values(), default=-1) + 1
    if shape != (config.vocab_size, config.hidden_size):
        raise ConfigError(
            f"{EMBEDDING} in {files.folder} is {' x '.join(map(str, shape))}, but config.json names "
            f"{config.vocab_size} x {config.hidden_size} (vocab_size, hidden_size): take both files from one model."
        )
    if size > rows:
        raise ConfigError(
            f"The tokenizer in {files.folder} has ids up to {size - 1}, but the model embeds only 0 to {rows - 1}: "
            "use the tokenizer of this model, or resize the embedding and save the model again."
        )
    return f"{size:,} tokens", f"at most {rows:,}, the embedding's rows"


def check_template(subject: Subject) -> Found:
    """The chat template shows the user's message, unchanged and once, after at most one BOS."""
    tokenizer = subject.files.tokenizer
    tokens = chat_tokens(tokenizer, PROBE)
    if (count := tokenizer.decode(tokens).count(PROBE)) != 1:
        raise ConfigError(
            f"The chat template in {subject.files.folder} shows the user's message {count} times; it must appear once, "
            "unchanged: correct chat_template.jinja."
        )
    begins = f"begins with {tokenizer.convert_ids_to_tokens(tokens[0])}"
    bos = "no BOS" if tokenizer.bos_token is None else f"BOS {tokenizer.bos_token}"
    return f"{begins}; {bos}", "the message once, BOS at most once"


def check_stop_tokens(subject: Subject) -> Found:
    """A token ends a response before the next role begins: of generation_config.json or of the template."""
    files, rows = subject.files, subject.files.config.vocab_size
    stops = stop_tokens(SimpleNamespace(generation_config=files.generation_config), files.tokenizer)
    if wrong := [stop for stop in stops if not 0 <= stop < rows]:
        raise ConfigError(
            f"{files.folder / 'generation_config.json'} has eos_token_id {wrong[0]}; ids from 0 to {rows - 1} are "
            "allowed: correct it to the token that ends a response."
        )
    return ", ".join(files.tokenizer.convert_ids_to_tokens(stops)), "one or more"


MODEL_CHECKS: dict[str, Callable[[Subject], Found]] = {
    "layers": check_layers,
    "dtype": check_dtype,
    "vocabulary": check_vocabulary,
    "chat template": check_template,
    "stop tokens": check_stop_tokens,
}
