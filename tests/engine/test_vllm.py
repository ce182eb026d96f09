"""vLLM keeps the contract of a backend, and what would silently give unsteered responses ends the run.

Needs vLLM's environment and minutes: `make test-vllm`. test_vllm_parts.py has what needs neither.
"""

import os
import subprocess
from dataclasses import replace

import contract
import pytest
import torch

from esr.engine.activations import Document
from esr.engine.backend import TransformersBackend
from esr.engine.guard import SteeringError
from esr.engine.rows import Row
from esr.engine.vllm.backend import VllmBackend
from esr.models.vllm import VllmModel, interpreter
from esr.paths import ROOT

pytestmark = pytest.mark.skipif(not os.environ.get("ESR_TEST_VLLM"), reason="needs vLLM: make test-vllm")


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def kind(request, tmp_path_factory):
    model = contract.make_model(request.param)
    folder = tmp_path_factory.mktemp("models") / request.param
    model.save_pretrained(folder)
    return folder, TransformersBackend(model)


@pytest.fixture(scope="module")
def backend(kind):
    backend = VllmBackend(VllmModel(kind[0], "float32"))
    yield backend
    backend.close()


@pytest.mark.parametrize("check", contract.ALONE, ids=lambda check: check.__name__)
def test_contract(backend, check):
    check(backend)


@pytest.mark.parametrize("check", contract.BESIDE, ids=lambda check: check.__name__)
def test_contract_beside_transformers(backend, kind, check):
    check(backend, kind[1])


def test_greedy_responses_agree_with_transformers(backend, kind, record_property):
    share = contract.greedy_agreement(backend, kind[1])
    record_property("greedy agreement", share)
    print(f"greedy agreement, float32: {share:.3f}")
    assert share >= 0.9


def test_a_prompt_longer_than_a_pass_keeps_its_places(backend, kind):
    document = Document(tuple(1 + i % 90 for i in range(200)), (30, 31, 32))
    edit = replace(contract.steer(response_only=True), vectors=contract.vectors()[:1])
    [(_, one, _)] = backend.collect([document], contract.LAYER + 1, [edit])
    [(_, other, _)] = kind[1].collect([document], contract.LAYER + 1, [edit])
    contract.close(one.cpu(), other.cpu(), 1e-3)


def test_the_last_layer_and_impossible_rows_are_refused_before_work(backend):
    with pytest.raises(ValueError, match="with vLLM layers 0 to 1 can be edited"):
        backend.generate(contract.ROWS, [replace(contract.steer(), layer=2)], **contract.GREEDY)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        backend.generate([Row((1, 500), 0, 4)], **contract.GREEDY)


def test_a_vector_that_overflows_ends_the_run(backend):
    with pytest.raises((SteeringError, ArithmeticError), match="not finite"):
        backend.generate(contract.ROWS, [contract.steer(vectors=contract.vectors() * 1e38)], **contract.GREEDY)


# What makes vllm-lens silent, provoked in its own environment: each must end in a refusal of `server.check`

PROVOKE = """
import os, sys, torch
sys.path.insert(0, {tests!r})
os.environ |= {{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}}
from esr.engine.edits import LayerEdit
from esr.engine.vllm import hooks, server, wire

def job():
    vectors = 4 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    fields, tensors = wire.pack([LayerEdit(1, vectors)])
    rows = [{{"prompt": [1, 5, 6 + i], "prompt_length": 3, "begin": 0, "max_tokens": 4, "seed": i}} for i in range(2)]
    return {{"rows": rows, "edits": fields, "layers": [], "median_norm": None, "batch_size": 8, "score": False,
            "temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": []}}, tensors

def outcome(name):
    try:
        server.reply_to(llm, *job())
        print(name, "PASSED", flush=True)
    except server.Refused as refusal:
        print(name, "REFUSED", refusal.kind, refusal, flush=True)

if __name__ == "__main__":
    llm = server.start({{"folder": {folder!r}, "dtype": "float32", "options": {{"max_model_len": 128}}}})
    outcome("plain")

    known = hooks.RowHooks._behind
    def failing(self, saved, hidden):
        if self.seen >= 4:
            raise RuntimeError("out of memory")
        return known(self, saved, hidden)
    def unsteered(self, saved, hidden):
        known(self, saved, hidden)
        return hidden.clone()
    import cloudpickle
    for name, wrong in (("raised hook", failing), ("wrong edit", unsteered)):
        cloudpickle.register_pickle_by_value(hooks)
        hooks.RowHooks._behind = wrong
        outcome(name)
        hooks.RowHooks._behind = known

    generate, kept = llm.generate, []
    def reusing(prompts, parameters, **options):
        kept.append(parameters)
        return generate(prompts, kept[0], **options)
    llm.generate = reusing
    outcome("first use")
    outcome("reused request")
    llm.generate = generate
    llm.collective_rpc = lambda *a, known=llm.collective_rpc, **k: None if a[0] == "set_hook_data" else known(*a, **k)
    outcome("lost hooks")
"""


@pytest.fixture(scope="module")
def provoked(kind):
    if kind[0].name != "llama":
        pytest.skip("one model is enough")
    file = kind[0].parent / "provoke.py"
    file.write_text(PROVOKE.format(tests=os.path.dirname(__file__), folder=str(kind[0])))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "0"}
    done = subprocess.run([str(interpreter()), str(file)], env=environment, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if " PASSED" in line or " REFUSED" in line]
    assert lines, done.stderr[-3000:]
    return lines


@pytest.mark.parametrize("name", ["plain", "first use"])
def test_what_is_right_passes(provoked, name):
    assert f"{name} PASSED" in provoked


@pytest.mark.parametrize("name", ["raised hook", "wrong edit", "reused request", "lost hooks"])
def test_what_vllm_lens_passes_over_ends_the_run(provoked, name):
    [line] = [line for line in provoked if line.startswith(name)]
    assert "REFUSED SteeringError Steering check failed at layer 1" in line


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"VLLM_LENS_DISABLE": "1"}, {}, "VLLM_LENS_DISABLE is set, and no hook would run: unset it"),
        ({"VLLM_USE_V2_MODEL_RUNNER": "1"}, {}, "vLLM does not start: .*runner"),
    ],
)
def test_an_engine_whose_hooks_would_not_run_is_refused(kind, variables, options, message, monkeypatch):
    if kind[0].name != "llama":
        pytest.skip("one model is enough")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    backend = VllmBackend(VllmModel(kind[0], "float32", options))
    with pytest.raises(RuntimeError, match=message):
        backend.score([Document((1, 2), (3,))])
    backend.close()


def test_the_process_ends_with_its_backend(kind):
    if kind[0].name != "llama":
        pytest.skip("one model is enough")
    backend = VllmBackend(VllmModel(kind[0], "float32"))
    [scores] = backend.score([Document((1, 2), (3, 4))])
    assert scores.shape == (2,) and torch.isfinite(scores).all()
    process = backend.process
    backend.close()
    assert process.poll() is not None
