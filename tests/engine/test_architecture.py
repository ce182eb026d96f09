"""The engine equals transformers on every model type it supports, and refuses the others from their config."""

import pytest
import torch
from conftest import ARCHITECTURES, tiny_config, tiny_llama, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, LlamaForSequenceClassification

from esr.engine.activations import Document, residuals
from esr.engine.architecture import MODEL_TYPES, UnsupportedArchitecture, check_architecture, max_positions
from esr.engine.generation import Row, generate

GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "stop_tokens": [2]}
CLOSE = {"atol": 1e-4, "rtol": 1e-5}


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


def rows():
    """Prompts and responses from one token to many sliding windows."""
    draw = torch.Generator().manual_seed(3)
    lengths = [(1, 40), (40, 40), (3, 30), (25, 40), (9, 20), (40, 12)]
    return [Row(tuple(torch.randint(3, 97, (n,), generator=draw).tolist()), 100, new) for n, new in lengths]


class Logits:
    """Logits of every generated token by trial, recorded within `generate`."""

    layer = 0

    def __init__(self, model):
        self.by_trial = {}
        self.hook = model.register_forward_hook(self.record)

    def edit(self, hidden, step):
        self.trials, self.real = step.trials.tolist(), step.real.any(-1).tolist()
        return hidden

    def prompt_key(self, trial):
        return ()

    def record(self, _model, _inputs, output):
        for trial, real, logits in zip(self.trials, self.real, output.logits[:, -1], strict=True):
            if real:
                self.by_trial.setdefault(trial, []).append(logits)


def test_every_supported_type_is_tested():
    assert {model_type for model_type, _ in ARCHITECTURES.values()} == set(MODEL_TYPES)


def test_greedy_tokens_equal_transformers_generate(model):
    for row, response in zip(rows(), generate(model, rows(), batch_size=3, **GREEDY), strict=True):
        written = model.generate(
            torch.tensor([row.prompt]), attention_mask=torch.ones(1, len(row.prompt)), do_sample=False,
            max_new_tokens=row.max_new_tokens, eos_token_id=2, pad_token_id=0,
        )[0, len(row.prompt) :].tolist()  # fmt: skip
        assert response.tokens == [t for t in written if t != 2]


def test_logits_of_the_loop_equal_a_full_forward_pass(model):
    recorded = Logits(model)
    responses = generate(model, rows(), [recorded], batch_size=3, **GREEDY)
    recorded.hook.remove()
    for i, (row, response) in enumerate(zip(rows(), responses, strict=True)):
        logits = torch.stack(recorded.by_trial[i])
        with torch.no_grad():
            plain = model(torch.tensor([[*row.prompt, *response.tokens]])).logits[0, len(row.prompt) - 1 :]
        assert len(logits) == len(response.tokens) + (response.finish_reason == "stop")
        torch.testing.assert_close(logits, plain[: len(logits)], **CLOSE)


def test_collected_activations_equal_a_plain_hook(model):
    documents = [Document(row.prompt, row.prompt[::-1]) for row in rows()]
    for layer in range(3):
        for i, hidden, _ in residuals(model, documents, layer, batch_size=4):
            seen = []
            handle = model.model.layers[layer].register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
            with torch.no_grad():
                model(torch.tensor([[*documents[i].prompt, *documents[i].response]]))
            handle.remove()
            torch.testing.assert_close(hidden, seen[0][0, len(documents[i].prompt) :], **CLOSE)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama3", {"rope_scaling": None}),
        ("mistral-sliding", {"sliding_window": None}),
        ("phi3", {"sliding_window": None}),
        ("qwen2-sliding", {"use_sliding_window": False}),
        ("qwen2-layer-types", {"layer_types": ["sliding_attention"] * 3}),
        ("smollm3", {"no_rope_layers": [1, 1, 1]}),
        ("gemma2", {"sliding_window": 60}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 8}),
        ("gemma3", {"sliding_window_pattern": 1}),
        ("gemma3", {"rope_local_base_freq": 1e6}),
    ],
)
def test_what_is_special_about_an_architecture_changes_its_logits(name, change):
    """Otherwise equality with transformers would show nothing about it."""
    tokens = torch.tensor([rows()[1].prompt])
    with torch.no_grad():
        difference = tiny_model(name)(tokens).logits - tiny_model(name, **change)(tokens).logits
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gpt2", "Llama's layout"),
        ("gpt_neox", "Llama's layout"),
        ("phi", "Llama's layout"),
        ("mamba", "layers of the kind linear_attention"),
        ("t5", "encoder-decoder"),
        ("gemma3", "its text model \\(gemma3_text\\) is one part of a multimodal model"),
        ("llama4", "its text model \\(llama4_text\\)"),
        ("llama4_text", "layers of the kind chunked_attention"),
        ("qwen3_next", "layers of the kind linear_attention"),
    ],
)
def test_other_architectures_are_refused_from_their_config(model_type, reason):
    with pytest.raises(UnsupportedArchitecture, match=f"{model_type} are not supported: .*{reason}.*gemma, gemma2"):
        check_architecture(CONFIG_MAPPING[model_type]())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama2", {"sliding_window": 6}, "has sliding_window 6.*set it to null"),
        ("llama2", {"sliding_window": [6, None, 6]}, r"has sliding_window \[6, None, 6\]"),
        ("llama2", {"layer_types": ["sliding_attention"] * 3}, "has layer_types.*remove them"),
        ("mistral-sliding", {"layer_types": ["full_attention"] * 3}, "has layer_types.*remove them"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layers of the kind chunked_attention"),
        ("qwen2", {"layer_types": ["linear_attention"] * 3}, "layers of the kind linear_attention"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "sliding layers with sliding_window None"),
        ("mistral-sliding", {"sliding_window": 0}, "sliding layers with sliding_window 0"),
        ("gemma3", {"use_bidirectional_attention": True}, "bidirectional attention"),
        ("llama2", {"is_causal": False}, "bidirectional attention"),
    ],
)
def test_what_the_engine_would_get_wrong_is_refused_from_the_config(name, change, message):
    with pytest.raises(UnsupportedArchitecture, match=message) as refused:
        check_architecture(tiny_config(name, **change))
    assert isinstance(refused.value, ValueError) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_supported_configs_pass(name):
    check_architecture(tiny_config(name))


def test_a_model_of_another_layout_is_refused_before_any_work():
    classifier = LlamaForSequenceClassification(tiny_llama().config)
    adapted = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    for model in (classifier, adapted):
        with pytest.raises(UnsupportedArchitecture, match="lacks the layout of a llama language model"):
            generate(model, rows(), batch_size=3, **GREEDY)
        with pytest.raises(UnsupportedArchitecture, match="lacks the layout"):
            next(residuals(model, [Document((5,), (6,))], 0))


def test_longrope_ends_where_its_frequencies_would_change():
    assert max_positions(tiny_config("phi3")) == 128
    assert max_positions(tiny_config("llama3")) == max_positions(tiny_config("gemma3")) == 256


def test_documents_longer_than_the_model_are_refused():
    with pytest.raises(ValueError, match="Document 1 has 257 tokens, and the model 256 positions"):
        next(residuals(tiny_llama(), [Document((5,), (6,)), Document((5,) * 250, (6,) * 7)], 0))
