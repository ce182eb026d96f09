"""The engine against `transformers.generate` and against itself: exact, whatever stands beside a row."""

import pytest
import torch

from esr.engine.generation import Row, generate
from esr.engine.interventions import AddVector, Capture

SAMPLING = {"temperature": 0.8, "repetition_penalty": 1.2, "stop_tokens": [2]}
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": [2]}


def rows(n=7, seed=3):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (n,), generator=draw).tolist()
    return [
        Row(
            tuple(torch.randint(3, 97, (length,), generator=draw).tolist()),
            seed=100 + i,
            max_new_tokens=5 + 3 * (i % 4),
        )
        for i, length in enumerate(lengths)
    ]


def test_greedy_equals_transformers_generate(model):
    for row, response in zip(rows(), generate(model, rows(), batch_size=3, **GREEDY), strict=True):
        expected = model.generate(
            torch.tensor([row.prompt]), attention_mask=torch.ones(1, len(row.prompt)), do_sample=False,
            max_new_tokens=row.max_new_tokens, eos_token_id=2, pad_token_id=0,
        )[0, len(row.prompt) :].tolist()  # fmt: skip
        assert response.tokens == [t for t in expected if t != 2]
        assert response.finish_reason == ("stop" if 2 in expected else "length")


def test_repetition_penalty_equals_transformers_generate(model):
    settings = GREEDY | {"repetition_penalty": 1.7}
    for row, response in zip(rows(), generate(model, rows(), batch_size=4, **settings), strict=True):
        expected = model.generate(
            torch.tensor([row.prompt]), attention_mask=torch.ones(1, len(row.prompt)), do_sample=False,
            max_new_tokens=row.max_new_tokens, eos_token_id=2, pad_token_id=0, repetition_penalty=1.7,
        )[0, len(row.prompt) :].tolist()  # fmt: skip
        assert response.tokens == [t for t in expected if t != 2]


@pytest.mark.parametrize("settings", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_batched_equals_alone(model, settings):
    vectors = torch.randn(7, 32, generator=torch.Generator().manual_seed(1)) * 3
    together = generate(model, rows(), [AddVector(1, vectors)], batch_size=3, **settings)
    for i, row in enumerate(rows()):
        [alone] = generate(model, [row], [AddVector(1, vectors[i : i + 1])], batch_size=1, **settings)
        assert alone == together[i]


def test_steering_changes_responses_and_differs_by_row(model):
    same = [Row((5, 6, 7), seed=1, max_new_tokens=12)] * 2
    vectors = torch.stack([torch.zeros(32), 5 * torch.randn(32, generator=torch.Generator().manual_seed(2))])
    plain, steered = generate(model, same, [AddVector(1, vectors)], batch_size=2, **SAMPLING)
    [unsteered] = generate(model, same[:1], batch_size=1, **SAMPLING)
    assert plain == unsteered
    assert steered != unsteered


def test_same_rows_same_responses_other_seed_other_responses(model):
    assert generate(model, rows(), batch_size=3, **SAMPLING) == generate(model, rows(), batch_size=3, **SAMPLING)
    other = [Row(r.prompt, r.seed + 1, r.max_new_tokens) for r in rows()]
    assert generate(model, rows(), batch_size=3, **SAMPLING) != generate(model, other, batch_size=3, **SAMPLING)


def test_captured_residuals_equal_a_plain_forward_pass(model):
    """Ragged cache, refilled slots and padding leave no trace in what is captured."""
    capture = Capture(1)
    responses = generate(model, rows(), [capture], batch_size=3, **GREEDY)
    for i, (row, response) in enumerate(zip(rows(), responses, strict=True)):
        known = [*row.prompt, *response.tokens]
        seen = {}
        handle = model.model.layers[1].register_forward_hook(lambda _m, _i, out, seen=seen: seen.update(out=out))
        with torch.no_grad():
            model(torch.tensor([known]))
        handle.remove()
        got = capture.residuals(i)
        torch.testing.assert_close(got, seen["out"][0, : len(got)], atol=1e-4, rtol=1e-4)
        assert len(got) >= len(known) - 1


def test_length_limit_and_stop(model):
    long = [Row((5, 6), seed=0, max_new_tokens=4)]
    [response] = generate(model, long, batch_size=1, temperature=0.0, repetition_penalty=1.0, stop_tokens=[])
    assert len(response.tokens) == 4 and response.finish_reason == "length"
    [stopped] = generate(
        model, long, batch_size=1, temperature=0.0, repetition_penalty=1.0, stop_tokens=[response.tokens[2]]
    )
    first = response.tokens.index(response.tokens[2])
    assert stopped.tokens == response.tokens[:first] and stopped.finish_reason == "stop"


def test_rows_with_the_same_prompt_and_edits_share_its_prefill(model):
    """The prompt is run once for those that share it, and responses are those of rows that do not."""
    prompt, other = (5, 6, 7, 8), (9, 10, 11)
    same = [Row(prompt, seed=i, max_new_tokens=6) for i in range(4)] + [Row(other, 9, 6), Row(prompt, 9, 6)]
    vectors = torch.zeros(6, 32)
    vectors[3] = 2.0
    seen = []

    class Counted(AddVector):
        def edit(self, hidden, step):
            if not step.response.any():
                seen.append(step.trials.tolist())
            return super().edit(hidden, step)

    together = generate(model, same, [Counted(1, vectors)], batch_size=6, **SAMPLING)
    assert sorted(i for group in seen for i in group) == [0, 3, 4]
    for i, row in enumerate(same):
        [alone] = generate(model, [row], [AddVector(1, vectors[i : i + 1])], batch_size=1, **SAMPLING)
        assert together[i] == alone


def test_many_prompts_are_run_in_groups_of_bounded_size(model, monkeypatch):
    monkeypatch.setattr("esr.engine.generation.PREFILL", 12)
    whole = generate(model, rows(), batch_size=7, **SAMPLING)
    monkeypatch.setattr("esr.engine.generation.PREFILL", 10_000)
    assert generate(model, rows(), batch_size=7, **SAMPLING) == whole


def test_attention_and_linear_maps_of_the_model_are_back_afterwards(model):
    model = model.to(torch.bfloat16)
    before = model.config._attn_implementation
    generate(model, rows(), batch_size=3, **GREEDY)
    assert model.config._attn_implementation == before
    assert not [m for m in model.modules() if "forward" in vars(m)]
