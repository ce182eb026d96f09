"""What a fetched model must satisfy before anything heavy runs; reads headers, configuration and tokenizer alone.

Each check returns what was found and what is needed, or raises ConfigError with a sentence: what is wrong, where, what
is allowed and what to do. Not here: SAEs, the engine, the machine (esr.pipeline.preflight).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from esr.config.registry import ModelEntry
from esr.config.schema import ConfigError
from esr.models.chat import chat_tokens
from esr.models.files import ModelFiles, first_line

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


def check_weights(subject: Subject) -> Found:
    """All files are whole, and the weights of a dtype that is computed with."""
    files = subject.files
    method = (getattr(files.config, "quantization_config", None) or {}).get("quant_method")
    dtypes = sorted({tensor.dtype for tensor in files.tensors.values()})
    if wrong := [method] if method else [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise ConfigError(
            f"The weights in {files.folder} are quantized ({', '.join(wrong)}); {', '.join(DTYPES)} are allowed: "
            "name a source with plain weights."
        )
    found = f"{files.n_parameters / 1e6:,.1f} M parameters, {', '.join(dtypes)}"
    return found, f"whole files of {', '.join(DTYPES)}"


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
    shape = next((t.shape for name, t in files.tensors.items() if name.endswith(EMBEDDING)), None)
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
    """The chat template shows the user's message, unchanged and once."""
    files = subject.files
    if not files.tokenizer.chat_template:
        raise ConfigError(
            f"The tokenizer in {files.folder} has no chat template: add chat_template.jinja to the source, or choose "
            "the instruction-tuned model."
        )
    try:
        shown = files.tokenizer.decode(chat_tokens(files.tokenizer, PROBE))
    except ConfigError:
        raise
    except Exception as error:  # a template raises what it likes
        raise ConfigError(
            f"The chat template in {files.folder} fails on a single user message ({first_line(error)}): "
            "correct chat_template.jinja."
        ) from None
    if (count := shown.count(PROBE)) != 1:
        raise ConfigError(
            f"The chat template in {files.folder} shows the user's message {count} times; it must appear once, "
            "unchanged: correct chat_template.jinja."
        )
    return "shows a user's message", "once, unchanged"


def check_bos(subject: Subject) -> Found:
    """The prompt begins with BOS at most once."""
    tokenizer = subject.files.tokenizer
    bos, tokens = tokenizer.bos_token_id, list(chat_tokens(tokenizer, PROBE))
    if bos is not None and tokens[:2] == [bos, bos]:
        raise ConfigError(
            f"A prompt of {subject.files.model} begins with BOS ({tokenizer.bos_token}) twice, by the chat template in "
            f"{subject.files.folder}; once is allowed: remove it from chat_template.jinja."
        )
    found = "the model has none" if bos is None else f"id {bos}, {'first' if tokens[0] == bos else 'not'} in a prompt"
    return found, "at most once"


def end_of_turn(tokenizer) -> int | None:
    """Id of the token that the chat template puts after a response; None where it puts none."""
    turns = [
        {"role": role, "content": text} for role, text in (("user", PROBE), ("assistant", "Blue"), ("user", PROBE))
    ]
    try:
        after = tokenizer.apply_chat_template(turns, tokenize=False).partition("Blue")[2]
    except Exception:  # raised by a template of a single turn
        return None
    tokens = tokenizer(after, add_special_tokens=False).input_ids
    return next((token for token in tokens if token in tokenizer.all_special_ids), None)


def check_stop_tokens(subject: Subject) -> Found:
    """A token ends a response before the next role begins: of generation_config.json or of the template."""
    files, rows = subject.files, subject.files.config.vocab_size
    turn, path = end_of_turn(files.tokenizer), files.folder / "generation_config.json"
    stops = sorted({*files.generation_stops, *([] if turn is None else [turn])})
    if not stops:
        raise ConfigError(
            f"Nothing ends a response of {files.model}: {path} has no eos_token_id, and the chat template writes no "
            "control token after a response; add eos_token_id there."
        )
    if wrong := [stop for stop in stops if not 0 <= stop < rows]:
        raise ConfigError(
            f"{path} has eos_token_id {wrong[0]}; ids from 0 to {rows - 1} are allowed: correct it to the token that "
            "ends a response."
        )
    names = files.tokenizer.convert_ids_to_tokens(stops)
    return ", ".join(f"{name} ({stop})" for name, stop in zip(names, stops, strict=True)), "one or more"


def check_positions(subject: Subject) -> Found:
    """Prompt and response fit into the positions that the model knows."""
    room, prompt, new = subject.files.config.max_position_embeddings, subject.prompt_tokens, subject.max_new_tokens
    if prompt + new > room:
        raise ConfigError(
            f"{subject.files.model} has {room} positions (max_position_embeddings), the longest prompt {prompt} tokens "
            f"and params.yaml max_new_tokens {new}: lower it to {max(0, room - prompt)} or less."
        )
    return f"{room:,}", f"{prompt} of the longest prompt + {new} new"


MODEL_CHECKS: dict[str, Callable[[Subject], Found]] = {
    "layers": check_layers,
    "vocabulary": check_vocabulary,
    "chat template": check_template,
    "BOS": check_bos,
    "stop tokens": check_stop_tokens,
    "positions": check_positions,
}
