"""Chats as token ids: the chat template of any model, with its system text, date and BOS; the end of a turn.

transformers renders and tokenizes; text in a message that looks like a control token stays text. Checked with
transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from esr.config.registry import Template
from esr.config.schema import ConfigError
from esr.models.alignment import ends_inside_character

TODAY = date(2025, 1, 1)  # for templates that print the day they are used on, unless the entry gives another
DIRECTIVES = "aAbBcdHIjmMpSUwWxXyY"  # of strftime
RESPONSE = "RESPONSE"


def use_template(tokenizer, template: Template):
    """The tokenizer, with the registry's `template` for every chat from now on."""
    tokenizer.chat_settings = template
    return tokenizer


def chat_tokens(tokenizer, prompt: str, prefill: Sequence[int] = ()) -> tuple[int, ...]:
    """Token ids of one user turn in the model's chat template, followed by the prefilled opening of the response.

    Raises ConfigError when the template fails, prints BOS twice or makes a control token of the prompt's text, and when
    the prefill ends inside a character.
    """
    if prefill and ends_inside_character(prefill, tokenizer):
        raise ConfigError(f"A prefilled opening of {len(prefill)} tokens ends inside a character: cut it elsewhere.")
    turns = _turns(tokenizer, prompt)
    tokens = _encode(tokenizer, turns)
    _check_text(tokenizer, turns, tokens)
    return (*_bos(tokenizer, tokens), *tokens, *prefill)


def end_of_turn(tokenizer) -> int | None:
    """Id of the token that the chat template puts after a response; None where it puts none."""
    turns = [_turn("user", "x"), _turn("assistant", RESPONSE), _turn("user", "x")]
    try:
        rest = _apply(tokenizer, turns, tokenize=False).partition(RESPONSE)[2]
    except Exception:  # raised by a template of a single turn
        return None
    control = control_tokens(tokenizer)
    found = (i for i in tokenizer(rest, add_special_tokens=False).input_ids if i in control and control[i] in rest)
    return next(found, None)


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _turns(tokenizer, prompt: str) -> list[dict[str, str]]:
    """The user's turn and the system text: a turn where the template prints one, else in front of the prompt."""
    system = _settings(tokenizer).system
    if system is None:
        return [_turn("user", prompt)]
    try:
        turns = [_turn("system", system), _turn("user", prompt)]
        has_role = system.strip() in _apply(tokenizer, turns, tokenize=False)
    except Exception:  # raised by the template: it has no such role
        has_role = False
    return turns if has_role else [_turn("user", f"{system}\n\n{prompt}" if system else prompt)]


def _encode(tokenizer, turns: list[dict[str, str]]) -> list[int]:
    try:
        chat = _apply(tokenizer, turns, add_generation_prompt=True, sanitize_control_tokens=True)
    except Exception as error:  # raised by the template's own code, or by the tokenizer for a control token
        raise ConfigError(
            f"The chat template of {tokenizer.name_or_path or 'the tokenizer'} fails on the prompt "
            f'{turns[-1]["content"]!r} with the error "{str(error).rstrip(".")}": correct the template, or '
            "change the prompt if it is one of data/prompts."
        ) from None
    return list(chat["input_ids"])


def _apply(tokenizer, turns: list[dict[str, str]], **options):
    """`apply_chat_template` on the entry's date: on two days, equal chats."""
    given, template = _settings(tokenizer).date, tokenizer.get_chat_template()
    day = given or TODAY
    if given:
        options["date_string"] = day.strftime("%d %b %Y")  # Llama 3; null leaves the template's own
    if "strftime_now" in template:  # transformers passes no functions to templates: a macro hides its clock
        replaced = "".join(f"|replace('%{d}', '{day.strftime(f'%{d}')}')" for d in DIRECTIVES)
        template = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"
    return tokenizer.apply_chat_template(turns, chat_template=template, **options)


def _settings(tokenizer) -> Template:
    return getattr(tokenizer, "chat_settings", None) or Template()


def control_tokens(tokenizer) -> dict[int, str]:
    """Text of each added token by id, named (`all_special_ids`) or not: Gemma 3 does not name those of its turns.

    Without those that are white space, which are text; Gemma spells spaces with a mark.
    """
    added = tokenizer.added_tokens_decoder.items()
    return {token_id: token.content for token_id, token in added if not token.content.replace("▁", " ").isspace()}


def _check_text(tokenizer, turns: list[dict[str, str]], tokens: list[int]) -> None:
    """Raise ConfigError where a token of the template comes from the prompt's text.

    transformers finds special tokens there, and others only where the template spells them in one piece.
    """
    control = control_tokens(tokenizer)
    prompt = turns[-1]["content"]
    if not (suspect := {i for i in set(tokens) if i in control and control[i] in prompt}):
        return
    frame = _encode(tokenizer, [*turns[:-1], _turn("user", "x")])
    for token in suspect & set(frame):
        if tokens.count(token) != frame.count(token):
            raise ConfigError(
                f"The prompt {prompt!r} holds {control[token]}, which the tokenizer cannot read as text: "
                "remove it from the prompt."
            )


def _bos(tokenizer, tokens: list[int]) -> list[int]:
    """BOS where the tokenizer puts it before a text and the template does not print it."""
    bos = tokenizer.bos_token_id
    if bos is not None and tokens[:2] == [bos, bos]:
        raise ConfigError(
            f"The chat template of {tokenizer.name_or_path or 'the tokenizer'} prints the BOS token "
            f"{tokenizer.bos_token} twice: remove one from the template."
        )
    if bos is None or tokens[:1] == [bos]:
        return []
    return [bos] if tokenizer("x").input_ids[:1] == [bos] else []
