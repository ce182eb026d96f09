"""What a model computes in: bfloat16 where the processor multiplies it, float32 where it would only pretend to."""

import pytest
import torch
import yaml
from conftest import tiny_llama
from safetensors.torch import load_file

from esr.models import loading, provenance
from esr.models.devices import compute_dtype
from esr.models.loading import load_model
from esr.paths import ROOT

ZEN_3 = {"avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}
SKYLAKE_X = ZEN_3 | {"avx512_f": True}
ZEN_4 = SKYLAKE_X | {"avx512_bf16": True}
SAPPHIRE_RAPIDS = ZEN_4 | {"amx_bf16": True}


@pytest.fixture
def processor(monkeypatch):
    """Set what torch says about the CPU."""
    monkeypatch.setenv("ESR_DEVICE", "cpu")

    def set_to(capabilities: dict, mkldnn: bool = True) -> None:
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
        monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: mkldnn)

    return set_to


@pytest.mark.parametrize(
    ("capabilities", "mkldnn", "dtype"),
    [
        (ZEN_3, True, torch.float32),
        (SKYLAKE_X, True, torch.float32),
        (ZEN_4, True, torch.bfloat16),
        (ZEN_4, False, torch.float32),
        (SAPPHIRE_RAPIDS, True, torch.bfloat16),
        ({"neon": True, "bf16": False}, True, torch.float32),
        ({"neon": True, "bf16": True}, True, torch.bfloat16),
        ({"neon": True, "bf16": True}, False, torch.float32),  # PyTorch on a Mac
    ],
)
def test_bfloat16_is_computed_in_only_where_the_processor_multiplies_it(processor, capabilities, mkldnn, dtype):
    processor(capabilities, mkldnn)
    assert compute_dtype() == dtype


def test_the_names_of_capabilities_are_those_torch_uses():
    known = torch.cpu.get_capabilities()
    if known["architecture"] == "x86_64":
        assert {"avx512_bf16", "amx_bf16"} <= set(known)
    else:
        assert "bf16" in known


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_on_a_gpu_emulated_bfloat16_does_not_count(monkeypatch, native, dtype):
    monkeypatch.setenv("ESR_DEVICE", "cuda")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert compute_dtype() == dtype


@pytest.mark.parametrize(("capabilities", "name"), [(ZEN_3, "float32"), (ZEN_4, "bfloat16")])
def test_weights_are_loaded_in_the_dtype_that_results_are_kept_under(
    processor, monkeypatch, tmp_path, capabilities, name
):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "model_folder", lambda _id: tmp_path)
    processor(capabilities)
    assert str(load_model("tiny").dtype) == f"torch.{name}"
    assert provenance.environment()["dtype"] == name  # part of a chunk's key: dtypes never share a result


def test_a_corpus_is_kept_in_bfloat16_whatever_it_was_computed_in(monkeypatch, tmp_path):
    from esr.sae import on_policy

    model = tiny_llama()
    monkeypatch.setattr(on_policy, "resident_model", lambda _id: (model, None))
    monkeypatch.setattr(on_policy, "chat_tokens", lambda _tokenizer, request: tuple(request))
    monkeypatch.setattr(on_policy, "stop_tokens", lambda _model, _tokenizer: (2,))
    chunk = {
        "model": "tiny", "requests": [[1, 5, 7], [1, 9, 4, 6]], "seed": 0, "max_new_tokens": 4, "layers": [1],
        "batch_size": 2, "temperature": 0.8, "repetition_penalty": 1.1,
    }  # fmt: skip
    (tmp_path / "shard").write_bytes(on_policy.write_shard(chunk, lambda finished, new: None))
    assert load_file(tmp_path / "shard")["residual.1"].dtype == torch.bfloat16


def test_every_stage_that_computes_depends_on_the_room_that_chooses_the_dtype():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    deps = {name: stage.get("do", stage)["deps"] for name, stage in stages.items()}
    computing = {name: listed for name, listed in deps.items() if {"esr/engine", "esr/judging"} & {*listed}}
    del computing["measure"]  # reads the annotators' labels and judges nothing
    assert {"train_sae", "relevance", "judge"} <= computing.keys()
    assert [name for name, listed in computing.items() if "esr/models" not in listed] == []
