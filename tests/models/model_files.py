"""Models as they arrive: GGUF files, wheels and folders of tiny models, in the real formats."""

import hashlib
import re
import zipfile
from types import SimpleNamespace

import gguf
import torch
from gguf import GGUFWriter
from pydantic import TypeAdapter
from safetensors.torch import save
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from esr.config.sources import AnySource

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ċ Ċ", "Ġ t"]
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": len(SPECIAL) + 256 + len(MERGES),
}  # fmt: skip


def gguf_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, rms_norm_eps=1e-5))


def gguf_qwen2() -> Qwen2ForCausalLM:
    """Untied output matrix, biases of query, key and value other than zero, another rope base than the default."""
    torch.manual_seed(0)
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    model = Qwen2ForCausalLM(
        Qwen2Config(**SIZES, tie_word_embeddings=False, rms_norm_eps=1e-6, rope_parameters=rope)
    ).eval()
    for name, values in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(values)
    return model


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Query and key rows in the order GGUF keeps Llama's: rotary pairs side by side, not half a head apart."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def write_gguf(path, model, architecture="llama", rule="smollm", without="", **fields):
    """fields: further uint32 metadata, `rope.scaling` being written as `rope__scaling`."""
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in fields.items():
        writer.add_uint32(f"{architecture}.{name.replace('__', '.')}", value)
    tokens = SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(MERGES)
    writer.add_chat_template(TEMPLATE)
    special = {"bos": 1, "eos": 2, "pad": 2, "unk": 0} if rule != "qwen2" else {"bos": 0, "eos": 2, "pad": 0}
    for name, token in special.items():
        getattr(writer, f"add_{name}_token_id")(token)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.QWEN2 if architecture == "qwen2" else gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers
    )
    for name, weight in model.state_dict().items():
        if name == without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        if architecture != "qwen2" and (match := re.search(r"[qk]_proj", name)):
            heads = config.num_attention_heads if match[0] == "q_proj" else config.num_key_value_heads
            weight = interleave(weight, heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    return sha256(path)


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_parts(folder, whole: bytes, n: int) -> None:
    """Wheels tiny_part1 .. tiny_partN in `folder`, with `whole` cut in n."""
    size = -(-len(whole) // n)
    for i in range(1, n + 1):
        part = whole[(i - 1) * size : i * size]
        write_wheel(folder, {f"tiny_part{i}/data/part{i:02d}.bin": part}, name=f"tiny_part{i}")


def parts_fields(whole: bytes, n: int) -> dict:
    """Fields of a source of the wheels that `write_parts` wrote."""
    return {
        "requirement": "tiny-part{n}==1.0",
        "n_parts": n,
        "part": "tiny_part{n}/data/part{n:02d}.bin",
        "file": "tiny.gguf",
        "file_sha256": hashlib.sha256(whole).hexdigest(),
    }


def layout() -> dict:
    """A minimal model folder, and what often lies beside it but is no part of it."""
    model = {
        "config.json": b"{}",
        "model.safetensors": save({"weight": torch.arange(8.0)}),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"t",
    }
    beside = {"optimizer.pt": b"", "pytorch_model.bin": b"", "consolidated.safetensors": b"", "onnx/model.json": b""}
    return model | beside


def shards() -> dict:
    """A minimal model folder with weights in two shards."""
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    weights = {
        "model-00001-of-00002.safetensors": save({"a": torch.zeros(2)}),
        "model-00002-of-00002.safetensors": save({"b": torch.ones(3)}),
        "model.safetensors.index.json": index,
    }
    return {name: content for name, content in layout().items() if name != "model.safetensors"} | weights


def write_folder(folder, files: dict):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def source(kind: str, **fields):
    return TypeAdapter(AnySource).validate_python({"kind": kind, **fields})


def entry(*sources, tuned_from=None):
    return SimpleNamespace(source=list(sources), tuned_from=tuned_from)


def contents(folder) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
