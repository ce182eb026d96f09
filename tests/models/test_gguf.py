"""Conversion from GGUF: the same computation, the same tokens, and no file that would be read wrongly."""

import json

import pytest
import torch
from model_files import gguf_llama, gguf_qwen2, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from esr.models.failures import FetchError
from esr.models.gguf import convert_gguf
from esr.models.loading import stop_tokens


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A Qwen2 model, and the folder of its conversion."""
    folder = tmp_path_factory.mktemp("qwen2")
    model = gguf_qwen2()
    file = write_gguf(folder / "tiny.gguf", model, architecture="qwen2", rule="qwen2")
    (folder / "converted").mkdir()
    convert_gguf(file, folder / "converted")
    return model, folder / "converted"


def test_qwen2_keeps_biases_output_matrix_and_rope_base(qwen2):
    model, folder = qwen2
    converted = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(converted, Qwen2ForCausalLM)
    assert converted.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight.to(torch.bfloat16)), name
    assert converted.config.rope_parameters["rope_theta"] == 1e6
    assert converted.config.tie_word_embeddings is False
    assert converted.config.rms_norm_eps == 1e-6
    tokens = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = Qwen2ForCausalLM(model.config).eval().to(torch.float32)
        expected.load_state_dict({name: w.to(torch.bfloat16).float() for name, w in model.state_dict().items()})
        torch.testing.assert_close(converted.float()(tokens).logits, expected(tokens).logits)


def test_either_of_qwen2s_end_tokens_ends_a_response_and_nothing_begins_one(qwen2):
    _, folder = qwen2
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert stop_tokens(model, tokenizer) == ends == [2, 0]
    assert model.config.bos_token_id is None and tokenizer.bos_token is None
    assert "bos_token_id" not in json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("a").input_ids == tokenizer("a", add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "text",
    ["a\n\n12 t", "don't STOP'LL", "x  \n\n y\t z", "e\u0301t\u00e9 \u00e9", "  def f(x):\n\treturn 3", "日本 नमस्ते"],
)
def test_qwen2_splits_text_as_the_tokenizer_of_transformers_does(qwen2, text):
    tokenizer = AutoTokenizer.from_pretrained(qwen2[1])
    original = Qwen2Tokenizer().backend_tokenizer
    assert tokenizer.backend_tokenizer.normalizer.normalize_str(text) == original.normalizer.normalize_str(text)
    expected = original.pre_tokenizer.pre_tokenize_str(original.normalizer.normalize_str(text))
    assert (
        tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(original.normalizer.normalize_str(text)) == expected
    )
    stored = json.loads((qwen2[1] / "tokenizer.json").read_text())  # what other readers of the folder see
    assert stored["normalizer"] == {"type": "NFC"} and r"\p{N}|" in json.dumps(stored["pre_tokenizer"]).replace(
        "\\\\", "\\"
    )


def test_qwen2s_chat_template_and_control_tokens_are_kept(qwen2):
    tokenizer = AutoTokenizer.from_pretrained(qwen2[1])
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    assert tokenizer(chat, add_special_tokens=False).input_ids[0] == 1


def test_other_architectures_are_not_converted(tmp_path):
    write_gguf(tmp_path / "phi.gguf", gguf_llama(), architecture="phi3")
    with pytest.raises(ValueError, match="phi.gguf is a phi3 model, and only llama and qwen2 models are converted"):
        convert_gguf(tmp_path / "phi.gguf", tmp_path)


@pytest.mark.parametrize("model", [gguf_llama, gguf_qwen2])
def test_missing_weight_is_not_left_random(tmp_path, model):
    kind = {"architecture": "qwen2", "rule": "qwen2"} if model is gguf_qwen2 else {}
    write_gguf(tmp_path / "part.gguf", model(), without="model.layers.1.mlp.up_proj.weight", **kind)
    with pytest.raises(ValueError, match="part.gguf lacks model.layers.1.mlp.up_proj.weight"):
        convert_gguf(tmp_path / "part.gguf", tmp_path)


def test_positions_and_windows_that_would_be_ignored_are_refused(tmp_path):
    write_gguf(tmp_path / "long.gguf", gguf_llama(), attention__sliding_window=16)
    with pytest.raises(ValueError, match="long.gguf sets attention.sliding_window, which is not converted"):
        convert_gguf(tmp_path / "long.gguf", tmp_path)
    write_gguf(tmp_path / "yarn.gguf", gguf_llama(), rope__scaling__type=1)
    with pytest.raises(ValueError, match="yarn.gguf sets rope.scaling.type, which is not converted"):
        convert_gguf(tmp_path / "yarn.gguf", tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf", gguf_llama()).read_bytes()
    for content in (b"", b"GGML" + bytes(100), whole[:40], whole[:3000], whole[:-1000]):
        (tmp_path / "cut.gguf").write_bytes(content)
        with pytest.raises(FetchError, match="cut.gguf is damaged or truncated .*: download it again"):
            convert_gguf(tmp_path / "cut.gguf", tmp_path)
