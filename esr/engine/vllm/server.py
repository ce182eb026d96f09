"""vLLM with vllm-lens, driven by messages on stdin: python -m esr.engine.vllm.server, in vLLM's environment.

The first message says what to load. Every further one asks for responses, residual streams or scores, and gets one
reply: the result, or the error that refuses it. All requests of a message that fit into the key-value cache run as one
dynamic batch, each under edits and a seed of its own. Parameters are made anew for every request, since vllm-lens takes
the hooks out of them and would not steer a second time. Nothing listens on a port, and prompts are token ids.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import torch
from torch import Tensor

from esr.engine.edits import LayerEdit
from esr.engine.vllm.hooks import RowHooks
from esr.engine.vllm.wire import receive, send, unpack


class Refused(RuntimeError):
    """A run that must not give results. kind: SteeringError or NonFiniteError; row: the request's."""

    def __init__(self, kind: str, message: str, row: int = -1):
        super().__init__(message)
        self.kind, self.row = kind, row


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # vLLM's output goes to its log
    requests = sys.stdin.buffer
    first = receive(requests)
    if first is None:
        return
    try:
        llm = start(first[0])
    except Exception as error:
        send(replies, {"error": "RuntimeError", "message": f"vLLM does not start: {error}", "row": -1})
        raise
    send(replies, {"ready": True})
    while (message := receive(requests)) is not None:
        try:
            send(replies, *reply_to(llm, *message))
        except Refused as refusal:
            send(replies, {"error": refusal.kind, "message": str(refusal), "row": refusal.row})
        except Exception as error:
            send(
                replies,
                {"error": "RuntimeError", "message": f"vLLM failed: {type(error).__name__}: {error}", "row": -1},
            )


def start(job: dict[str, Any]):
    """The engine, eager as vllm-lens needs it. Raises RuntimeError where the hooks would not run."""
    from vllm import LLM

    if os.environ.get("VLLM_LENS_DISABLE"):
        raise RuntimeError("VLLM_LENS_DISABLE is set, and no hook would run: unset it.")
    llm = LLM(
        model=job["folder"], dtype=job["dtype"], seed=0, generation_config="vllm", skip_tokenizer_init=True,
        enable_prefix_caching=False,  # requests with equal prompts have other edits
        async_scheduling=False,  # else a pass may run beyond the stop token
        disable_log_stats=True, **job["options"],
    )  # fmt: skip
    config = llm.llm_engine.vllm_config
    if config.use_v2_model_runner:
        raise RuntimeError("vLLM runs its V2 model runner, whose passes vllm-lens does not see.")
    if config.speculative_config is not None:
        raise RuntimeError("Speculative decoding is on, whose draft tokens pass without edits: turn it off.")
    return llm


def reply_to(llm, job: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The reply to one message.

    rows: prompt (token ids), begin (index of the first token to collect), max_tokens and seed of each request. layers:
    to collect. score: whether to give the log-probability of each prompt token.
    """
    edits = unpack(job["edits"], tensors)
    rows, outputs = job["rows"], []
    hooks = [hooks_of(row, place, edits, job["layers"], job["median_norm"]) for place, row in enumerate(rows)]
    size = rows_at_once(llm, rows, job["batch_size"])
    for begin in range(0, len(rows), size):
        part = slice(begin, begin + size)
        outputs += run(llm, rows[part], hooks[part], job)
    check(rows, hooks, outputs, job["score"])
    found: dict[str, Tensor] = {}
    for place, output in enumerate(outputs):
        found |= collected(place, hooks[place], output)
        if job["score"]:
            found[f"{place}.scores"] = torch.tensor(prompt_scores(output), dtype=torch.float32)
    texts = [{"tokens": list(o.outputs[0].token_ids), "finish_reason": o.outputs[0].finish_reason} for o in outputs]
    return {"responses": texts}, found


def hooks_of(
    row: dict, place: int, edits: list[LayerEdit], layers: list[int], median_norm: float | None
) -> list[RowHooks]:
    """Hooks of one request: of every layer that is edited for any request, or collected."""
    of_layer = {edit.layer: edit.of_trial(place) for edit in edits}
    norm = math.inf if median_norm is None else median_norm
    return [
        RowHooks(layer, of_layer.get(layer), row["prompt_length"], layer in layers, row["begin"], norm)
        for layer in sorted({*of_layer, *layers})
    ]


def run(llm, rows: list[dict], hooks: list[list[RowHooks]], job: dict[str, Any]) -> list:
    from vllm import SamplingParams

    parameters = [
        SamplingParams(
            temperature=job["temperature"], repetition_penalty=job["repetition_penalty"], seed=row["seed"],
            max_tokens=row["max_tokens"], stop_token_ids=job["stop_tokens"], ignore_eos=True, detokenize=False,
            logprobs=0, prompt_logprobs=0 if job["score"] else None,
            extra_args={"apply_hooks": lens_hooks(of_row)} if of_row else None,
        )
        for row, of_row in zip(rows, hooks, strict=True)
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": row["prompt"]} for row in rows]
    return llm.generate(prompts, parameters, use_tqdm=False)


def lens_hooks(hooks: list[RowHooks]) -> list:
    """For each layer the hook behind it and, where it is edited, the one before the next."""
    from vllm_lens import Hook

    found = []
    for hook in hooks:
        found.append(Hook(fn=hook.behind, layer_indices=[hook.layer]))
        if hook.edit is not None:
            found.append(Hook(fn=hook.before_next, layer_indices=[hook.layer + 1], pre=True))
    return found


def rows_at_once(llm, rows: list[dict], batch_size: int) -> int:
    """So few that all fit into the cache at their longest: a request that vLLM preempts would be counted wrongly."""
    cache = llm.llm_engine.vllm_config.cache_config
    longest = max(len(row["prompt"]) + row["max_tokens"] for row in rows)
    fitting = cache.num_gpu_blocks // -(-longest // cache.block_size)
    if not fitting:
        raise Refused("RuntimeError", f"vLLM's key-value cache is too small for {longest} tokens: give it more memory.")
    return min(batch_size, fitting)


def check(rows: list[dict], hooks: list[list[RowHooks]], outputs: list, score: bool) -> None:
    """Raise Refused unless every token of every request passed its hooks, and the next layer got the planned edit."""
    for place, (row, of_row, output) in enumerate(zip(rows, hooks, outputs, strict=True)):
        expected = len(row["prompt"]) + len(output.outputs[0].token_ids) - 1  # the last token is never run
        for hook, behind, next_layer in results_of(of_row, output):
            error = behind.get("error") or next_layer.get("error")
            seen, checked = behind.get("seen", 0), next_layer.get("checked", 0)
            if error or seen != expected or (hook.edit is not None and checked != expected):
                kind = "NonFiniteError" if error and error.startswith("NonFiniteError") else "SteeringError"
                raise Refused(
                    kind,
                    f"Steering check failed at layer {hook.layer}, trial {place} of the batch: of {expected} tokens "
                    f"{seen} passed the hooks of vllm-lens"
                    + (f" and {checked} reached the next layer with the intended edit" if hook.edit is not None else "")
                    + (f" ({error})" if error else "")
                    + "; do not use the responses.",
                    place,
                )
        text = output.outputs[0]
        if text.finish_reason == "length" and len(text.token_ids) != row["max_tokens"]:
            message = f"vLLM ended the response of row {place} at {len(text.token_ids)} of {row['max_tokens']} tokens."
            raise Refused("RuntimeError", message, place)
        values = generated_scores(output) + (prompt_scores(output)[1:] if score else [])
        if not all(map(math.isfinite, values)):
            message = f"Row {place} has values that are not finite in the logits: lower the boost."
            raise Refused("NonFiniteError", message, place)


def results_of(hooks: list[RowHooks], output) -> list[tuple[RowHooks, dict, dict]]:
    """For each layer's hooks what they saved, empty if they never ran."""
    saved = getattr(output, "hook_results", None) or {}
    found, position = [], 0
    for hook in hooks:
        behind, position = saved.get(str(position), {}), position + 1
        next_layer: dict = {}
        if hook.edit is not None:
            next_layer, position = saved.get(str(position), {}), position + 1
        found.append((hook, behind, next_layer))
    return found


def collected(place: int, hooks: list[RowHooks], output) -> dict[str, Tensor]:
    """Residual streams and masks of sinks of one request, by place and layer."""
    found = {}
    for hook, behind, _ in results_of(hooks, output):
        for name in ("hidden", "sinks") if hook.collect else ():
            passes = sorted((key for key in behind if key.startswith(name)), key=lambda key: int(key.split()[1]))
            found[f"{place}.{name}.{hook.layer}"] = torch.cat([behind[key] for key in passes])
    return found


def generated_scores(output) -> list[float]:
    """Log-probability of each generated token, before temperature and penalty."""
    given = zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
    return [entry[token].logprob for token, entry in given]


def prompt_scores(output) -> list[float]:
    """Log-probability of each prompt token given those before; nan for the first."""
    given = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
    return [entry[token].logprob if entry else math.nan for token, entry in given]


if __name__ == "__main__":
    main()
