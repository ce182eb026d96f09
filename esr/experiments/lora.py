"""LoRA training above the steered layer.

The layers below run once per text for all epochs; the backward pass stops where adapters begin. Equal examples,
recipe, machine and library versions give equal adapters at one thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from esr.engine.attention import attention_by
from esr.engine.linear import packed
from esr.experiments.self_corrections import Example
from esr.storage.records import Record

LOSS_PART = 128  # tokens per pass of the output layer: a tenth faster than a whole batch


@dataclass(frozen=True)
class Recipe:
    first_layer: int
    """First layer with adapters, above the steered layer and the SAE's layer."""
    openers: tuple[int, ...]
    """Token ids with which a restart begins (`restart_phrases.openers`)."""
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear maps with an adapter."""
    rank: int = 32
    """Of each adapter's two matrices."""
    lora_alpha: float = 16.0
    """An adapter's output is multiplied by lora_alpha / rank."""
    dropout: float = 0.05
    """Share of an adapter's inputs set to zero while training."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, reached after warm-up; then linear decay to zero."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    epochs: int = 2
    """Passes over the examples."""
    batch_size: int = 8
    """Examples per step, of about equal length."""
    restart_weight: float = 3.0
    """Loss weight of -log p where a restart must begin, p the probability of its first tokens; other tokens have 1."""
    no_restart_weight: float = 10.0
    """Loss weight of -log(1 - p) where none must begin."""
    seed: int = 0
    """Seed of the adapters' initial values, the dropout and the order of the examples."""

    def __post_init__(self):
        positive = ("first_layer", "rank", "lora_alpha", "lr", "epochs", "batch_size")
        for name in (*positive, "restart_weight", "no_restart_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be greater than 0.")
        if not 0 <= self.dropout < 1 or self.warmup_steps < 0:
            raise ValueError(f"dropout is {self.dropout} (0 to 1) and warmup_steps {self.warmup_steps} (0 or more).")


class TrainingStep(Record):
    """One step of the learning curve. loss: `batch_loss`, nats; tokens: cumulative."""

    step: int
    loss: float
    lr: float
    tokens: int


class Skip(nn.Module):
    """Identity in place of a layer that does not run."""

    def forward(self, hidden, *_args, **_kwargs):
        return hidden


@contextmanager
def only_layers(model, kept: range) -> Iterator[None]:
    """Within the block the decoder runs only the `kept` layers, and its final norm only with the last of them."""
    decoder = model.model
    layers, norm = decoder.layers, decoder.norm
    decoder.layers = nn.ModuleList(layer if i in kept else Skip() for i, layer in enumerate(layers))
    decoder.norm = norm if len(layers) - 1 in kept else Skip()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm


def train(
    model,
    examples: Sequence[Example],
    recipe: Recipe,
    on_step: Callable[[int, int], None] | None = None,
    vectors: Sequence[Float[Tensor, " d_model"] | None] | None = None,
) -> tuple[dict[str, Tensor], list[TrainingStep]]:
    """LoRA weights under PEFT's names, float32, and the learning curve; `model` is restored.

    vectors: for each example the steering vector added to every token below the first adapted layer, or None.
    on_step: called after every step with its numbers of examples and tokens. Raises ValueError without examples or when
    the layer does not exist.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    n_layers = len(model.model.layers)
    if not examples or recipe.first_layer >= n_layers:
        raise ValueError(
            f"{len(examples)} examples and first_layer {recipe.first_layer}: at least one example and a layer from 1 "
            f"to {n_layers - 1} are needed."
        )
    with packed(model):
        inputs = [_lower_residuals(model, example, recipe.first_layer) for example in examples]
    if vectors is not None:
        inputs = [x if v is None else x + v.to(x.dtype) for x, v in zip(inputs, vectors, strict=True)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        adapted = get_peft_model(model, lora_config(recipe, n_layers))
        model.train()
        try:
            with only_layers(model, range(recipe.first_layer, n_layers)), attention_by(model, _attention(model)):
                curve = _descend(model, inputs, examples, recipe, on_step)
            state = {k: v.detach().clone() for k, v in get_peft_model_state_dict(adapted).items()}
        finally:
            adapted.unload()
            model.eval()
    return state, curve


def _attention(model) -> str:
    """Eager attention on a CPU, where training steps take an eighth less time with it; else the model's default."""
    return "eager" if model.device.type == "cpu" else model.config._attn_implementation


def lora_config(recipe: Recipe, n_layers: int, base: str | None = None):
    """The recipe as PEFT's configuration; `base`: registry id of the model the adapter belongs to."""
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.lora_alpha,  # type: ignore[arg-type]  # PEFT annotates int and divides it by the rank
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.projections),
        layers_to_transform=list(range(recipe.first_layer, n_layers)),
        layers_pattern="layers",
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def _lower_residuals(model, example: Example, first_layer: int) -> Float[Tensor, "seq d_model"]:
    """Input of the layer `first_layer`, computed at batch size 1 to depend on the example alone."""
    tokens = torch.tensor([example.tokens], device=model.device)
    with only_layers(model, range(first_layer)):
        return model.model(input_ids=tokens, use_cache=False).last_hidden_state[0]


def _descend(model, inputs, examples, recipe: Recipe, on_step) -> list[TrainingStep]:
    from transformers import get_linear_schedule_with_warmup

    batches = [b for epoch in range(recipe.epochs) for b in _batches(examples, recipe.batch_size, recipe.seed + epoch)]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, min(recipe.warmup_steps, len(batches) - 1), len(batches))
    curve, seen = [], 0
    for step, batch in enumerate(batches, start=1):
        chosen = [examples[i] for i in batch]
        loss = batch_loss(model, [inputs[i] for i in batch], chosen, recipe)
        if not loss.isfinite():
            raise FloatingPointError(
                f"The loss of training step {step} is {loss.item()}, and the adapter would be lost: lower the learning "
                "rate or the loss weights."
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        ran = sum(len(example.tokens) for example in chosen)
        seen += ran
        curve.append(TrainingStep(step=step, loss=loss.item(), lr=lr, tokens=seen))
        if on_step:
            on_step(len(chosen), ran)
    return curve


def _batches(examples: Sequence[Example], size: int, seed: int) -> list[list[int]]:
    """Every example once, in random batches of similar lengths: less padding, less time."""
    rng = random.Random(seed)
    order = rng.sample(range(len(examples)), len(examples))
    batches = []
    for first in range(0, len(order), 8 * size):
        window = sorted(order[first : first + 8 * size], key=lambda i: len(examples[i].tokens))
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    return rng.sample(batches, len(batches))


def batch_loss(
    model, inputs: Sequence[Float[Tensor, "seq d_model"]], examples: Sequence[Example], recipe: Recipe
) -> Tensor:
    """Weighted mean over the examples' tokens with loss, nats.

    Targets have their cross-entropy; positions where a restart must begin -log p, where none must begin -log(1 - p).

    Call within `only_layers`, with those layers' inputs. Right-pad: causal attention ignores what follows.
    """
    padded = nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
    hidden = model.model(inputs_embeds=padded, use_cache=False).last_hidden_state
    found = predictions(examples, recipe).to(hidden.device)
    openers = torch.tensor(recipe.openers, dtype=torch.long, device=hidden.device)
    parts = zip(hidden[found.rows, found.positions].split(LOSS_PART), *found.parts(LOSS_PART), strict=True)
    total = sum(_token_losses(model, part, openers, *rest).sum() for part, *rest in parts)
    return total / (found.target_weights.sum() + found.restart_weights.sum() + found.no_restart_weights.sum())


def _token_losses(
    model, hidden: Float[Tensor, "n d_model"], openers: Int[Tensor, " openers"], targets: Int[Tensor, " n"],
    target_weights: Float[Tensor, " n"], restart_weights: Float[Tensor, " n"], no_restart_weights: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:  # fmt: skip
    logits = model.lm_head(hidden).float()  # the costly part
    if cap := getattr(model.config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    total = logits.logsumexp(-1)
    losses = target_weights * (total - logits.gather(1, targets[:, None])[:, 0])
    restart = (logits[:, openers].logsumexp(-1) - total).clamp(max=-1e-4)  # log p
    return losses - restart_weights * restart - no_restart_weights * torch.log1p(-restart.exp())


class Predictions(NamedTuple):
    """Every position that carries loss. A weight of 0: no such loss there."""

    rows: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    targets: Int[Tensor, " n"]
    target_weights: Float[Tensor, " n"]
    restart_weights: Float[Tensor, " n"]
    no_restart_weights: Float[Tensor, " n"]

    def to(self, device) -> Predictions:
        return Predictions(*(tensor.to(device) for tensor in self))

    def parts(self, size: int) -> list[tuple[Tensor, ...]]:
        """Targets and weights, `size` positions at a time."""
        return [tensor.split(size) for tensor in self[2:]]


def predictions(examples: Sequence[Example], recipe: Recipe) -> Predictions:
    """Where `examples` carry loss: position i - 1 predicts token i."""
    found = []
    for row, example in enumerate(examples):
        predicted, wanted, silent = set(example.targets), set(example.restart), set(example.no_restart)
        for i in sorted(predicted | wanted | silent):
            token = example.tokens[i] if i in predicted else 0
            of_restart = recipe.restart_weight * (i in wanted), recipe.no_restart_weight * (i in silent)
            found.append((row, i - 1, token, float(i in predicted), *of_restart))
    rows, positions, targets, *weights = zip(*found, strict=True)
    return Predictions(
        *map(torch.tensor, (rows, positions, targets)), *(torch.tensor(w, dtype=torch.float32) for w in weights)
    )
