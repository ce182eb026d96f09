"""Whether the engine's greedy tokens are transformers' own: `python -m benchmarks.equality MODEL ...`.

The engine generates for all prompts in one batch, transformers' `generate` for one at a time, both in float32, without
repetition penalty, on the first evaluation prompts. Writes paper/numbers/equality.json. Where tokens differ, prints the
first difference and how near the two tokens' logits are: a tie is not a wrong computation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from esr.config.schema import ConfigError
from esr.engine.generation import Row, generate
from esr.models.chat import chat_tokens
from esr.models.loading import load_model, load_tokenizer, stop_tokens
from esr.progress import Progress
from esr.reporting.numbers import write_numbers
from esr.storage.prompts import read_prompts

N_PROMPTS, N_TOKENS = 20, 48


@dataclass(frozen=True)
class Difference:
    """Where one prompt's tokens part. position: of the first new token that differs; None: one side stopped there.

    margin: transformers' logit of its token minus that of the engine's token; near 0 for a tie.
    """

    prompt: int
    position: int
    expected: int | None
    found: int | None
    margin: float | None


def engine_tokens(model, prompts: Sequence[Sequence[int]], tokens: int, stops: Sequence[int]) -> list[list[int]]:
    """Greedy tokens of the engine, all prompts in one batch, without the token that stops."""
    rows = [Row(tuple(prompt), seed=0, max_new_tokens=tokens) for prompt in prompts]
    settings = {"batch_size": len(rows), "temperature": 0.0, "repetition_penalty": 1.0}
    return [response.tokens for response in generate(model, rows, stop_tokens=stops, **settings)]


@torch.inference_mode()
def transformers_tokens(model, prompt: Sequence[int], tokens: int, stops: Sequence[int]) -> list[int]:
    """Greedy tokens of transformers for one prompt, without the token that stops."""
    ids = torch.tensor([list(prompt)], device=model.device)
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.0,
        max_new_tokens=tokens,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
    )[0, len(prompt) :].tolist()
    return written[:-1] if written and written[-1] in stops else written


@torch.inference_mode()
def first_difference(model, index: int, prompt: Sequence[int], expected: list[int], found: list[int]) -> Difference:
    """Where `found` leaves `expected`, and how near transformers' logits of the two tokens are."""
    pairs = zip([*expected, None], [*found, None], strict=False)
    position, (wanted, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    margin = None
    if wanted is not None and other is not None:
        ids = torch.tensor([[*prompt, *expected[:position]]], device=model.device)
        logits = model(ids).logits[0, -1]
        margin = float(logits[wanted] - logits[other])
    return Difference(index, position, wanted, other, margin)


def compare(
    model, prompts: Sequence[Sequence[int]], tokens: int, stops: Sequence[int], what: str = "equality"
) -> list[Difference]:
    """The prompts whose tokens differ between engine and transformers. stops: ids that end a response in both."""
    found = engine_tokens(model, prompts, tokens, stops)
    progress = Progress(what, len(prompts), "prompts")
    differences, written = [], 0
    for index, prompt in enumerate(prompts):
        expected = transformers_tokens(model, prompt, tokens, stops)
        written += len(expected)
        progress.update(index + 1, written)
        if expected != found[index]:
            differences.append(first_difference(model, index, prompt, expected, found[index]))
    return differences


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equality", description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a fetched model of data/models.yaml")
    parser.add_argument("--prompts", type=int, default=N_PROMPTS, help=f"number of prompts, default {N_PROMPTS}")
    parser.add_argument("--tokens", type=int, default=N_TOKENS, help=f"new tokens per prompt, default {N_TOKENS}")
    options = parser.parse_args(arguments)
    texts = [prompt.text for prompt in read_prompts("evaluation")[: options.prompts]]
    for name in options.models:
        try:
            tokenizer, model = load_tokenizer(name), load_model(name, torch.float32)
        except (ConfigError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from None
        prompts = [chat_tokens(tokenizer, text) for text in texts]
        differences = compare(model, prompts, options.tokens, stop_tokens(model, tokenizer), f"equality {name}")
        numbers = {"n_prompts": len(prompts), "n_equal": len(prompts) - len(differences), "n_tokens": options.tokens}
        write_numbers("equality", numbers, section=name)
        print(f"{name}: {numbers['n_equal']} of {len(prompts)} prompts equal, {options.tokens} tokens each")
        for difference in differences:
            print(f"  {difference}")


if __name__ == "__main__":
    main()
