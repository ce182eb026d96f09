"""What a fetched model must satisfy before anything heavy runs; reads headers, configuration and tokenizer alone.

Not here: SAEs, labels, memory (esr.sae.preflight).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from esr.config.registry import ModelEntry
from esr.config.schema import ConfigError
from esr.models.chat import chat_tokens
from esr.models.files import ModelFiles, first_line

DTYPES = ("BF16", "F16", "F32")  # of weights
EMBEDDING = "embed_tokens.weight"
PROBE = "Name a colour."  # a user message, to see what the template makes of it


@dataclass(frozen=True)
class Check:
    """A row of the table. problem: what is wrong, where, what is allowed and what to do, in a sentence; "" if right."""

    name: str
    found: str
    needed: str
    problem: str = ""


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
        """Tokens of the longest prompt with its template; 0 where the template does not work."""
        try:
            return max((len(chat_tokens(self.files.tokenizer, prompt)) for prompt in self.prompts), default=0)
        except ConfigError:
            raise
        except Exception:  # check_template says why
            return 0


def check_weights(subject: Subject) -> Check:
    """Dtype of the weights, whose files are whole."""
    files = subject.files
    dtypes = sorted({tensor.dtype for tensor in files.tensors.values()})
    found = f"{files.n_parameters / 1e6:,.0f} M parameters, {', '.join(dtypes)}"
    needed = f"whole files of {', '.join(DTYPES)}"
    wrong = [dtype for dtype in dtypes if dtype not in DTYPES]
    method = (getattr(files.config, "quantization_config", None) or {}).get("quant_method")
    if wrong or method:
        return Check("weights", found, needed, (
            f"The weights in {files.folder} are quantized ({method or ', '.join(wrong)}); {', '.join(DTYPES)} are "
            "allowed, because layers are read and edited: name a source with plain weights."
        ))  # fmt: skip
    return Check("weights", found, needed)


def check_layers(subject: Subject) -> Check:
    """The registry's number of layers is the model's. That layers are in range is checked with the registry."""
    files = subject.files
    found, stated = files.config.num_hidden_layers, subject.entry.n_layers
    problem = ""
    if stated is not None and stated != found:
        problem = (
            f"data/models.yaml: n_layers of {files.model} is {stated}, but {files.folder / 'config.json'} has {found} "
            f"layers: write n_layers: {found}, and layers from 0 to {found - 1}."
        )
    return Check("layers", str(found), str(stated), problem)


def check_vocabulary(subject: Subject) -> Check:
    """Every token of the tokenizer has a row in the embedding, of the width that the configuration names."""
    files = subject.files
    rows, width = next((t.shape for name, t in files.tensors.items() if name.endswith(EMBEDDING)), (0, 0))
    size, problem = max(files.tokenizer.get_vocab().values(), default=-1) + 1, ""
    if not rows:
        problem = (
            f"The weights in {files.folder} have no {EMBEDDING}: give the language model's weights, with all layers."
        )
    elif size > rows:
        problem = (
            f"The tokenizer in {files.folder} has ids up to {size - 1}, but the model embeds only 0 to {rows - 1}: "
            "use the tokenizer of this model, or resize the embedding and save the model again."
        )
    elif (rows, width) != (files.config.vocab_size, files.config.hidden_size):
        problem = (
            f"{EMBEDDING} in {files.folder} is {rows} x {width}, but config.json names {files.config.vocab_size} x "
            f"{files.config.hidden_size} (vocab_size, hidden_size): take weights and configuration from one model."
        )
    return Check("vocabulary", f"{size:,} tokens", f"at most {rows:,} embedding rows", problem)


def check_template(subject: Subject) -> Check:
    """The chat template shows the user's message, unchanged and once, and opens the response."""
    files = subject.files
    needed = "the message once, then an opened response"
    if not files.tokenizer.chat_template:
        return Check("chat template", "none", needed, (
            f"The tokenizer in {files.folder} has no chat template: a chat model is needed; add chat_template.jinja "
            "to the source or choose the instruction-tuned model."
        ))  # fmt: skip
    try:
        shown = files.tokenizer.decode(chat_tokens(files.tokenizer, PROBE))
    except Exception as error:  # a template raises what it likes
        return Check("chat template", "fails", needed, (
            f"The chat template in {files.folder} fails on a single user message ({first_line(error)}): "
            "user turns without a system turn are needed; correct chat_template.jinja."
        ))  # fmt: skip
    if (count := shown.count(PROBE)) != 1:
        return Check("chat template", f"the message {count} times", needed, (
            f"The chat template in {files.folder} shows the user's message {count} times: it must appear once, "
            "unchanged; correct chat_template.jinja."
        ))  # fmt: skip
    return Check("chat template", "the message once", needed)


def check_bos(subject: Subject) -> Check:
    """The prompt begins with BOS at most once."""
    files = subject.files
    bos, tokens = files.tokenizer.bos_token_id, list(chat_tokens(files.tokenizer, PROBE))
    count = next((i for i, token in enumerate(tokens) if token != bos), len(tokens)) if bos is not None else 0
    problem = ""
    if count > 1:
        problem = (
            f"A prompt of {files.model} begins with {files.tokenizer.bos_token!r} {count} times, by the chat template "
            f"in {files.folder}: once is allowed; remove it from chat_template.jinja."
        )
    return Check("BOS", "none" if bos is None else f"id {bos}, {count} times", "at most once", problem)


def end_of_turn(files: ModelFiles) -> int | None:
    """The first control token that the template writes after a response; None where it writes none."""
    turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": "Blue"}]
    try:
        text = files.tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template without responses ends none
        return None
    after = files.tokenizer(text.rpartition("Blue")[2], add_special_tokens=False).input_ids
    return next((token for token in after if token in files.tokenizer.all_special_ids), None)


def check_stop_tokens(subject: Subject) -> Check:
    """A token ends a response before the next role begins: of generation_config.json or of the template."""
    files = subject.files
    turn, rows = end_of_turn(files), files.config.vocab_size
    stops = sorted({*files.generation_stops, *([] if turn is None else [turn])})
    found, needed = ", ".join(map(str, stops)) or "none", "an id below the vocabulary size"
    problem = ""
    if not stops:
        problem = (
            f"Nothing ends a response of {files.model}: {files.folder / 'generation_config.json'} has no eos_token_id, "
            "and the chat template writes no control token after a response; add eos_token_id."
        )
    elif wrong := [stop for stop in stops if not 0 <= stop < rows]:
        problem = (
            f"{files.folder / 'generation_config.json'} has eos_token_id {wrong[0]}; ids from 0 to {rows - 1} are "
            "allowed: correct it to the token that ends a response."
        )
    return Check("stop tokens", found, needed, problem)


def check_positions(subject: Subject) -> Check:
    """Prompt and response fit into the positions that the model knows."""
    files = subject.files
    room, prompt, new = files.config.max_position_embeddings, subject.prompt_tokens, subject.max_new_tokens
    problem = ""
    if prompt + new > room:
        problem = (
            f"{files.model} has {room} positions (max_position_embeddings), but the longest prompt has {prompt} tokens "
            f"and params.yaml allows max_new_tokens of {new}: at most {max(0, room - prompt)} are allowed."
        )
    return Check("positions", f"{room:,}", f"{prompt} of the longest prompt + {new} new", problem)


MODEL_CHECKS = {
    "weights": check_weights,
    "layers": check_layers,
    "vocabulary": check_vocabulary,
    "chat template": check_template,
    "BOS": check_bos,
    "stop tokens": check_stop_tokens,
    "positions": check_positions,
}
