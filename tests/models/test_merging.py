"""Adapters: one that fits its base is merged, any other is refused before the base is loaded."""

import json

import pytest
import torch
from conftest import SIZES, tiny_llama
from model_files import entry, layout, source, write_folder
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from esr.models import fetch, merging
from esr.models.failures import FetchError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A fetched model of the registry, `tiny`."""
    folder = tmp_path / "fetch" / "tiny"
    tiny_llama().to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(layout()[name])
    for module in ("esr.models.loading", "esr.models.merging"):
        monkeypatch.setattr(f"{module}.model_folder", {"tiny": folder}.__getitem__)
    copied = {name: layout()[name] for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")}
    monkeypatch.setattr(merging, "load_tokenizer", lambda _id: Tokenizer(copied))
    return folder


class Tokenizer:
    def __init__(self, files):
        self.files = files

    def save_pretrained(self, folder):
        write_folder(folder, self.files)


def write_adapter(folder, model=None, **options):
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]} | options
    torch.manual_seed(0)
    adapted = get_peft_model(model or tiny_llama(), LoraConfig(**options))
    for name, values in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values)
    adapted.save_pretrained(folder)
    return folder


def test_adapter_is_merged_into_the_entrys_base(base, tmp_path):
    adapter = write_adapter(tmp_path / "adapter")
    tuned = entry(source("adapter", path=str(adapter)), tuned_from="tiny")
    folder = fetch.fetch_model(tuned, tmp_path / "model")
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.1.self_attn.{name}.weight" for name in ("q_proj", "v_proj")}
    assert json.loads((folder / "source.json").read_text())["source"] == {"kind": "adapter", "path": str(adapter)}


def edit_config(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(adapter, change):
    state = load_file(adapter / WEIGHTS)
    change(state)
    save_file(state, adapter / WEIGHTS)


def other_base():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 48, "num_hidden_layers": 5}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: edit_config(a, target_modules=["c_attn"]),
            r"does not fit tiny \(Target modules .*c_attn.* not found in",
        ),
        (lambda a: edit_config(a, r=8), r"does not fit tiny: .*lora_A.weight is \[4, 32\], where .* give \[8, 32\]"),
        (
            lambda a: edit_config(a, layers_to_transform=[9]),
            r"does not fit tiny \(Target modules .* not found in the base m",
        ),
        (
            lambda a: edit_config(a, target_modules=["q_proj"]),
            "does not fit tiny: the model has no place for .*v_proj.lora",
        ),
        (
            lambda a: edit_config(a, target_modules=["q_proj", "v_proj", "o_proj"]),
            "does not fit tiny: it lacks .*o_proj.lo",
        ),
        (lambda a: edit_config(a, peft_type="PROMPT_TUNING"), "(only LORA adapters are merged|does not fit tiny)"),
        (lambda a: edit_config(a, peft_type="NONE"), r"does not fit tiny \("),
        (
            lambda a: edit_weights(a, lambda state: state.pop(sorted(state)[0])),
            "does not fit tiny: it lacks .*lora_A.weight",
        ),
        (
            lambda a: (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:-2]),
            "has a adapter_model.safetensors that is tr",
        ),
        (
            lambda a: (a / WEIGHTS).write_bytes(b"version https://git-lfs"),
            "has a Git LFS pointer instead of adapter_model",
        ),
        (lambda a: (a / "adapter_config.json").unlink(), "has no adapter_config.json: give a folder that PEFT's"),
        (lambda a: (a / "adapter_config.json").write_text("{"), "has a adapter_config.json that is not JSON"),
        (lambda a: (a / WEIGHTS).unlink(), "holds no adapter"),
        (lambda a: write_adapter(a, other_base()), r"does not fit tiny: .* is \[4, 48\], where .* give \[4, 32\]"),
        (lambda a: write_adapter(a, other_base(), layers_to_transform=[4]), r"does not fit tiny \(Target modules"),
    ],
)
def test_adapter_that_does_not_fit_is_refused_before_the_base_is_loaded(base, tmp_path, monkeypatch, change, message):
    adapter = write_adapter(tmp_path / "adapter")
    change(adapter)
    if "holds no adapter" not in message:
        monkeypatch.setattr(merging, "load_model", None)
    tuned = entry(source("adapter", path=str(adapter)), tuned_from="tiny")
    with pytest.raises(FetchError, match=message) as error:
        fetch.fetch_model(tuned, tmp_path / "model")
    assert "\n" not in str(error.value) and not (tmp_path / "model").exists()


def test_adapter_without_a_base_is_refused(tmp_path):
    with pytest.raises(FetchError, match="adapter.* has no base: name the model it was trained on, tuned_from"):
        fetch.fetch_model(entry(source("adapter", path=str(tmp_path / "adapter"))), tmp_path / "model")
