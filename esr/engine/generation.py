"""Batched steered generation over a transformers model: one loop for every condition.

A *row* is one response to generate. Rows differ in prompt, seed, length limit and edit. Finished rows leave the batch
and waiting rows take their place. The key-value cache is ragged: row `r` keeps token `p` at `[r, :, p]`, unpadded after
prefill. Right-pad: causal attention ignores what follows.

Deterministic: equal rows, batch size, dtype, threads and versions give equal tokens on one machine. In float32 a row's
tokens do not depend on the other rows; in bfloat16 they may, because matrix kernels round differently at different
batch shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from esr.engine.architecture import attention_windows, check_architecture
from esr.engine.attention import RAGGED, attention_by, masks
from esr.engine.cache import Plan, RaggedLayer
from esr.engine.finite import first_layer, non_finite, sums
from esr.engine.interventions import Intervention, Step, apply, check_layers, shared_prompt
from esr.engine.linear import packed
from esr.engine.rows import Response, Row, check_rows
from esr.engine.sampling import sample

PREFILL = 1024  # prompt tokens a pass: fit in a core's cache, however many rows are admitted


class Generator:
    """Generates the responses of one list of rows; `generate` makes one per call."""

    def __init__(self, model, rows, interventions, batch_size: int, temperature, repetition_penalty, stop_tokens):
        self.model, self.rows, self.interventions = model, rows, interventions
        self.temperature, self.repetition_penalty = temperature, repetition_penalty
        self.stop_tokens = set(stop_tokens)
        self.device = model.device
        self.windows = attention_windows(model.config)
        slots = min(batch_size, len(rows))
        max_length = max(len(r.prompt) + r.max_new_tokens for r in rows)
        self.plan = Plan(slots)
        self.layers = [RaggedLayer(self.plan) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=[*self.layers])
        self.responses = [Response() for _ in rows]
        self.waiting = list(range(len(rows)))[::-1]
        self.trials = torch.full((slots,), -1, device=self.device)  # -1: idle
        self.lengths = torch.zeros(slots, dtype=torch.long, device=self.device)  # known tokens; the last is not yet run
        self.tokens = torch.zeros(slots, max_length, dtype=torch.long, device=self.device)
        self.uniforms = torch.zeros(slots, max(r.max_new_tokens for r in rows), device=self.device)
        idle = self.trials[:, None] >= 0
        self.step = Step(self.trials, idle, idle, torch.zeros_like(self.trials)[:, None])

    def run(self, on_progress: Callable[[int, int], None] | None = None) -> list[Response]:
        """All responses. Calls `on_progress(new_tokens, finished_rows)` after every token step."""
        while self.waiting or bool((self.trials >= 0).any()):
            self._admit()
            self._shrink()
            written, finished = self._decode()
            if on_progress:
                on_progress(written, finished)
        return self.responses

    def _admit(self) -> None:
        """Give idle slots to waiting rows and prefill their prompts, all but the last token."""
        idle = (self.trials < 0).nonzero().flatten().tolist()[: len(self.waiting)]
        # Every admission costs a forward pass: wait until an eighth of the slots is idle.
        if not idle or (len(idle) < min(len(self.waiting), max(1, len(self.trials) // 8))):
            return
        for slot in idle:
            trial = self.waiting.pop()
            row = self.rows[trial]
            self.trials[slot], self.lengths[slot] = trial, len(row.prompt)
            self.tokens[slot] = row.prompt[0]  # pad with a seen token: the repetition penalty ignores repeats
            self.tokens[slot, : len(row.prompt)] = torch.tensor(row.prompt, device=self.device)
            rng = torch.Generator().manual_seed(row.seed)
            self.uniforms[slot, : row.max_new_tokens] = torch.rand(row.max_new_tokens, generator=rng).to(self.device)
        self.plan.reserve(int(self.lengths.max()))
        firsts, copies = self._alike(idle)
        for group in self._groups(firsts):
            self._prefill(group)
        if copies:
            sources, rows = torch.tensor(list(copies.values())), torch.tensor(list(copies))
            for layer in self.layers:
                layer.copy(sources, rows, int(self.lengths[rows].max()) - 1)

    def _prefill(self, group: list[int]) -> None:
        """Run the prompts of some slots, each without its last token, into the cache."""
        slots = torch.tensor(group, device=self.device)
        width = int(self.lengths[slots].max()) - 1
        numbers: dict[tuple[int, ...], int] = {}
        prompts = [numbers.setdefault(self.rows[int(t)].prompt, len(numbers)) for t in self.trials[slots]]
        firsts = torch.tensor([prompts.index(n) for n in range(len(numbers))], device=self.device)
        self.plan.prompts = torch.tensor(prompts, device=self.device)
        positions = torch.arange(width, device=self.device)[None]
        self._plan(slots, positions.expand(len(group), width), prefill=True)
        self.step.real = self.plan.positions < (self.lengths[slots] - 1)[:, None]
        self.step.response = torch.zeros_like(self.step.real)
        causal = torch.ones(width, width, dtype=torch.bool, device=self.device).tril()[None, None]
        inputs = self._inputs(self.tokens[slots[firsts], :width], positions, causal)
        hidden = self.model.model(**inputs).last_hidden_state
        self._check_finite(sums(hidden), lambda: self.model.model(**inputs))

    def _spread(self, _module, _inputs, output):
        """Expand each distinct prompt to all rows that have it: a hook before the edits of the first edited layer.

        Below that layer, rows with equal prompts are equal.
        """
        if not self.plan.prefill:
            return None
        if isinstance(output, tuple):
            return (output[0][self.plan.prompts], *output[1:])
        return output[self.plan.prompts]

    def _groups(self, slots: list[int]) -> Iterator[list[int]]:
        """Slots of prompts of similar length, at most PREFILL tokens a group; one-token prompts need no prefill."""
        lengths = dict(zip(slots, (self.lengths[slots] - 1).tolist(), strict=True))
        group: list[int] = []
        # Equal prompts side by side: a group runs each distinct prompt once below the first edit.
        for slot in sorted(slots, key=lambda s: (lengths[s], self.rows[int(self.trials[s])].prompt)):
            if group and (len(group) + 1) * lengths[slot] > PREFILL:
                yield group
                group = []
            if lengths[slot]:
                group.append(slot)
        if group:
            yield group

    def _alike(self, slots: list[int]) -> tuple[list[int], dict[int, int]]:
        """Slots whose prompts must run; for each other slot, the one with an equal prompt under equal edits."""
        firsts: dict = {}
        copies: dict[int, int] = {}
        for slot in slots:
            trial = int(self.trials[slot])
            edits = shared_prompt(self.interventions, trial)
            first = firsts.setdefault(slot if edits is None else (self.rows[trial].prompt, edits), slot)
            if first != slot:
                copies[slot] = first
        return list(firsts.values()), copies

    def _shrink(self) -> None:
        """Once nothing waits, drop idle slots when they are a quarter of the batch or more."""
        active = (self.trials >= 0).nonzero().flatten()
        if self.waiting or len(active) > 0.75 * len(self.trials) or len(active) == 0:
            return
        for layer in self.layers:
            layer.keep(active)
        for name in ("trials", "lengths", "tokens", "uniforms"):
            setattr(self, name, getattr(self, name)[active])
        self.plan.slots = len(active)

    def _decode(self) -> tuple[int, int]:
        """Run the last known token of every slot and sample the next: (tokens generated, rows finished)."""
        active = self.trials >= 0
        positions = (self.lengths - 1).clamp(min=0)[:, None]
        length = int(self.lengths.max())
        self.plan.reserve(length)
        seen = torch.arange(self.plan.room, device=self.device)[None, :] <= positions
        slots = torch.arange(len(self.trials), device=self.device)
        self._plan(slots, positions, prefill=False)
        self.step.real = self.step.response = active[:, None]
        inputs = self._inputs(self.tokens.gather(1, positions), positions, seen[:, None, None, :])
        logits = self.model(**inputs).logits[:, -1]
        self._check_finite(sums(logits)[:, None], lambda: self.model(**inputs))
        prompt_lengths = torch.tensor(
            [len(self.rows[t].prompt) if t >= 0 else 0 for t in self.trials.tolist()], device=self.device
        )
        new = (self.lengths - prompt_lengths).clamp(min=0)
        uniforms = self.uniforms.gather(1, new[:, None].clamp(max=self.uniforms.shape[1] - 1))[:, 0]
        chosen = sample(logits, self.tokens[:, :length], uniforms, self.temperature, self.repetition_penalty)
        finished = 0
        for slot, (trial, token) in enumerate(zip(self.trials.tolist(), chosen.tolist(), strict=True)):
            if trial < 0:
                continue
            response, row = self.responses[trial], self.rows[trial]
            if token in self.stop_tokens:
                response.finish_reason = "stop"
            else:
                response.tokens.append(token)
                if len(response.tokens) < row.max_new_tokens:
                    self.tokens[slot, self.lengths[slot]] = token
                    self.lengths[slot] += 1
                    continue
            finished += 1
            self.trials[slot], self.lengths[slot] = -1, 0
        return int(active.sum()), finished

    def _plan(self, slots, positions, prefill: bool) -> None:
        """Set the rows and positions of the next pass for cache and interventions."""
        self.plan.rows, self.plan.positions, self.plan.prefill = slots, positions, prefill
        self.step.trials, self.step.positions = self.trials[slots].clamp(min=0), positions

    def _inputs(self, tokens: Int[Tensor, "rows queries"], positions, mask) -> dict[str, Any]:
        """Arguments of one forward pass; prompts need no logits and run without the output layer."""
        return {
            "input_ids": tokens,
            "attention_mask": masks(mask, positions, self.windows),
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }

    def _check_finite(self, sums: Float[Tensor, "rows queries"], forward: Callable[[], object]) -> None:
        """Raise NonFiniteError for the first row with a real token whose sum is not finite; `forward`: the pass."""
        wrong = (~sums.isfinite() & self.step.real).any(-1)
        if not bool(wrong.any()):
            return
        row = int(wrong.nonzero()[0])
        trial = int(self.step.trials[row])

        def is_finite(hidden: Tensor) -> bool:
            if self.plan.prefill and len(hidden) < len(wrong):  # below the first edit: distinct prompts
                hidden = hidden[self.plan.prompts]
            return bool(hidden[row, self.step.real[row]].isfinite().all())

        layer = first_layer(self.model, forward, is_finite)
        token = len(self.responses[trial].tokens) + 1
        place = "in its prompt" if self.plan.prefill else f"at token {token} of its response"
        raise non_finite("Row", trial, place, layer, self.model.dtype)


@torch.inference_mode()
def generate(
    model,
    rows: Sequence[Row],
    interventions: Sequence[Intervention] = (),
    *,
    batch_size: int,
    temperature: float,
    repetition_penalty: float,
    stop_tokens: Sequence[int],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Response]:
    """One response per row, `batch_size` at a time, under `interventions` indexed like `rows`.

    temperature 0 is greedy. Raises ValueError, before any work, for a model or row that cannot run, and
    NonFiniteError for a row whose residual stream or logits overflow.
    """
    check_architecture(model)
    check_rows(model.config, rows, batch_size, stop_tokens)
    if not rows:
        return []
    generator = Generator(model, rows, interventions, batch_size, temperature, repetition_penalty, stop_tokens)
    first = min([i.layer for i in interventions], default=len(model.model.layers) - 1)
    check_layers(model, interventions)
    spread = model.model.layers[first].register_forward_hook(generator._spread)
    try:
        with packed(model), attention_by(model, RAGGED), apply(model, interventions, generator.step):
            return generator.run(on_progress)
    finally:
        spread.remove()
