"""What every backend promises (esr.engine.backend), on random models with large logits, in float32.

test_backend.py runs these checks on the transformers backend, and on vLLM where it is installed (`make test-vllm`).
"""

import math

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from esr.engine.activations import Document
from esr.engine.backend import TransformersBackend
from esr.engine.edits import LayerEdit
from esr.engine.interventions import LatentSubset
from esr.engine.rows import Row

# vLLM's attention on CPUs wants heads of 32 or more
SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LAYER = 1
PROMPTS = [(1, 6, 7, 8), (1, 10), (1, 12, 13, 14, 15, 16, 17), (1, 6, 7, 8), (1, 20, 21)]
ROWS = [Row(prompt, seed, 6 + seed % 3) for seed, prompt in enumerate(PROMPTS)]
GREEDY = {"batch_size": 3, "temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": []}
SAMPLED = {"batch_size": 3, "temperature": 0.8, "repetition_penalty": 1.1, "stop_tokens": [3, 4, 5]}


def make_model(kind: str):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    config = Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=64, attn_implementation="eager")
    return Gemma2ForCausalLM(config).eval()


def vectors(scale: float = 4.0) -> torch.Tensor:
    """One vector a row; the last row is unsteered."""
    drawn = scale * torch.randn(len(ROWS), 64, generator=torch.Generator().manual_seed(1))
    return drawn * (torch.arange(len(ROWS)) < len(ROWS) - 1)[:, None]


def subset() -> LatentSubset:
    directions = torch.linalg.qr(torch.randn(64, 6, generator=torch.Generator().manual_seed(5))).Q
    zeros = torch.zeros(6)
    return LatentSubset(tuple(range(6)), directions, zeros + 2.0, zeros + 0.3, torch.zeros(64), directions.T)


def steer(**changes) -> LayerEdit:
    return LayerEdit(LAYER, **{"vectors": vectors(), **changes})


def ablate(**changes) -> LayerEdit:
    latents = subset()
    chosen = latents.rows([(0, 1, 2, 3, 4, 5), (2,), (), (1, 5), (0, 1, 2, 3, 4, 5)])
    return LayerEdit(LAYER, **{"subset": latents, "chosen": chosen, **changes})


def documents() -> list[Document]:
    return [Document(prompt, tuple(range(30 + 7 * i, 34 + 8 * i))) for i, prompt in enumerate(PROMPTS)]


def collected(backend, edits=(), layer=LAYER, median_norm=math.inf):
    found = {
        i: (hidden, sinks) for i, hidden, sinks in backend.collect(documents(), layer, edits, median_norm=median_norm)
    }
    assert sorted(found) == list(range(len(PROMPTS)))
    return [found[i][0].float().cpu() for i in sorted(found)], [found[i][1].cpu() for i in sorted(found)]


def close(one, other, tolerance: float = 1e-4) -> None:
    assert one.shape == other.shape
    assert (one - other).abs().max() <= tolerance * other.abs().max(), (one - other).abs().max() / other.abs().max()


def the_residual_changes_by_exactly_the_vector(backend):
    plain, steered = collected(backend)[0], collected(backend, [steer()])[0]
    for before, after, vector in zip(plain, steered, vectors(), strict=True):
        close(after, before + vector, 1e-6)


def steering_of_the_response_alone_leaves_the_prompt(backend):
    """Response tokens attend to an unsteered prompt: below the edited layer all is equal, above it differs."""
    below, plain = (collected(backend, edits, LAYER - 1)[0] for edits in ([steer(response_only=True)], []))
    for one, other in zip(below, plain, strict=True):
        close(one, other)
    everywhere, response = (collected(backend, [steer(response_only=only)], LAYER + 1)[0] for only in (False, True))
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(everywhere[:-1], response[:-1], strict=True))


def an_ablated_latent_reads_zero_and_others_stay(backend):
    latents, edit = subset(), ablate(vectors=vectors())
    before, after = collected(backend, [steer()])[0], collected(backend, [edit])[0]
    for one, other, chosen in zip(before, after, edit.chosen, strict=True):
        read, left = latents.activations(one), latents.activations(other)
        assert (left[:, chosen] == 0).all() and ((read[:, ~chosen] - left[:, ~chosen]).abs() < 1e-3).all()
    assert (latents.activations(before[0])[:, edit.chosen[0]] > 0.5).any()


def sinks_are_not_ablated(backend):
    plain, _ = collected(backend)
    norm = float(torch.cat([hidden.norm(dim=-1) for hidden in plain]).median()) / 4.0  # half of the tokens are sinks
    edited, sinks = collected(backend, [ablate(median_norm=norm)], median_norm=norm)
    assert 0 < sum(int(mask.sum()) for mask in sinks) < sum(map(len, sinks))
    for before, after, mask in zip(plain[:2], edited[:2], sinks[:2], strict=True):
        if mask.any():
            close(after[mask], before[mask])
        assert (~mask).sum() == 0 or (after[~mask] - before[~mask]).abs().max() > 1e-3


def seeds_repeat_and_other_rows_do_not_matter(backend):
    edits = [ablate(vectors=vectors())]
    one, again = backend.generate(ROWS, edits, **SAMPLED), backend.generate(ROWS, edits, **SAMPLED)
    assert [(r.tokens, r.finish_reason) for r in one] == [(r.tokens, r.finish_reason) for r in again]
    alone = LayerEdit(LAYER, vectors()[2:3], subset=subset(), chosen=edits[0].chosen[2:3])
    [single] = backend.generate(ROWS[2:3], [alone], **SAMPLED)
    assert single.tokens == one[2].tokens
    other = backend.generate([Row(r.prompt, r.seed + 100, r.max_new_tokens) for r in ROWS], edits, **SAMPLED)
    assert [r.tokens for r in other] != [r.tokens for r in one]


def responses_end_at_a_stop_token_or_the_limit(backend):
    options = SAMPLED | {"stop_tokens": []}
    [free] = backend.generate(ROWS[:1], **options)
    assert len(free.tokens) == ROWS[0].max_new_tokens and free.finish_reason == "length"
    place = max(free.tokens.index(token) for token in free.tokens)
    [stopped] = backend.generate(ROWS[:1], **options | {"stop_tokens": [free.tokens[place]]})
    assert stopped.tokens == free.tokens[:place] and stopped.finish_reason == "stop"


def residuals_come_with_responses(backend):
    edits = [steer()]
    responses = backend.generate(ROWS, edits, **GREEDY, collect=[0, LAYER])
    texts = [Document(row.prompt, tuple(r.tokens)) for row, r in zip(ROWS, responses, strict=True)]
    read = {i: hidden for i, hidden, _ in backend.collect(texts, LAYER, edits)}
    for i, (row, response) in enumerate(zip(ROWS, responses, strict=True)):
        assert set(response.residuals) == {0, LAYER}
        assert len(response.residuals[0]) >= len(row.prompt) + len(response.tokens) - 1
        close(
            response.residuals[LAYER][len(row.prompt) :][: len(read[i]) - 1].float().cpu(), read[i][:-1].float().cpu()
        )


def scores_agree(backend, reference: TransformersBackend):
    for edits in (
        [],
        [steer()],
        [ablate(part="every token")],
        [ablate(part="response without sinks", median_norm=1e3)],
    ):
        found, expected = backend.score(documents(), edits), reference.score(documents(), edits)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape and (one.cpu() - other.cpu()).abs().max() < 1e-3


def activations_agree(backend, reference: TransformersBackend):
    for edits in ([], [steer()], [ablate(vectors=vectors(), median_norm=5.0)], [steer(response_only=True)]):
        for layer in (LAYER, LAYER + 1):
            for one, other in zip(
                collected(backend, edits, layer)[0], collected(reference, edits, layer)[0], strict=True
            ):
                close(one, other, 1e-3)


def greedy_agreement(backend, reference: TransformersBackend) -> float:
    """Share of rows whose greedy tokens are equal, steered and unsteered."""
    equal = []
    for edits in ([], [steer()], [ablate(vectors=vectors())]):
        found, expected = (b.generate(ROWS, edits, **GREEDY) for b in (backend, reference))
        equal += [one.tokens == other.tokens for one, other in zip(found, expected, strict=True)]
    return sum(equal) / len(equal)


ALONE = (
    the_residual_changes_by_exactly_the_vector,
    steering_of_the_response_alone_leaves_the_prompt,
    an_ablated_latent_reads_zero_and_others_stay,
    sinks_are_not_ablated,
    seeds_repeat_and_other_rows_do_not_matter,
    responses_end_at_a_stop_token_or_the_limit,
    residuals_come_with_responses,
)
BESIDE = (scores_agree, activations_agree)
