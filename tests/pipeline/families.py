"""Replicas of the published models: everything as in their registry entries, but the weights.

    ESR_ROOT=<folder> HF_HUB_CACHE=<folder> python tests/pipeline/families.py <repository> <entry>

A replica has the entry's architecture with all its layers, at width 32, the family's kind of tokenizer, template rules
and stop tokens, and an SAE with all its latents in the release's file format. Both lie in a cache of the hub's client,
from which they are fetched and read as if downloaded.
"""

import json
import os
import sys
from pathlib import Path

from tests.pipeline import replica
from tests.sae.releases import hub_file, tiny_sae, write_release

WIDTH = 32
SIZE = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
SOFT_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8}
# Templates with the rules of each family, in short: BOS, default system turn, date, roles
LLAMA = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# special tokens (padding first), BOS, those that end a response, template, whether spaces are marked in the vocabulary
TOKENIZERS = {
    "llama": (
        ["<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>",
         "<|end_header_id|>"], "<|begin_of_text|>", ["<|end_of_text|>", "<|eot_id|>"], LLAMA, False,
    ),
    "gemma": (
        ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", ["<eos>", "<end_of_turn>"], GEMMA,
        True,
    ),
    "gemma 3": (
        ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", ["<eos>", "<end_of_turn>"], GEMMA,
        True,
    ),
    "qwen": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, ["<|im_end|>", "<|endoftext|>"], QWEN, False),
}  # fmt: skip
UNNAMED = {"gemma 3"}  # tokenizers whose tokens of turns are special, but not listed as additional_special_tokens
LLAMA_3 = ("llama", {"rope_scaling": ROPE, "rope_theta": 5e5}, "llama")
GEMMA_2 = ("gemma2", SOFT_CAPS | {"sliding_window": 16}, "gemma")
GEMMA_3 = ("gemma3_text", {"sliding_window": 16, "query_pre_attn_scalar": 8, "rope_local_base_freq": 1e4}, "gemma 3")
FAMILIES = {  # model type, fields of its configuration, tokenizer
    "llama-33-70b": LLAMA_3,
    "llama-31-8b": LLAMA_3,
    "gemma-2-27b": GEMMA_2,
    "gemma-2-9b": GEMMA_2,
    "gemma-2-2b": GEMMA_2,
    "gemma-3-270m": GEMMA_3,
    "gemma-3-1b": GEMMA_3,
    "qwen25-7b": ("qwen2", {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 4}, "qwen"),
}


def write_model(folder: Path, family: str, n_layers: int, texts: list[str], seed: int = 0) -> None:
    """A random model of a family with `n_layers` layers, and its tokenizer, in the layout of `from_pretrained`."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

    model_type, fields, kind = FAMILIES[family]
    tokenizer = write_tokenizer(kind, texts)
    _, bos, stops, _, _ = TOKENIZERS[kind]
    ids = {
        "pad_token_id": 0, "bos_token_id": tokenizer.convert_tokens_to_ids(bos) if bos else None,
        "eos_token_id": tokenizer.convert_tokens_to_ids(stops[0]),
    }  # fmt: skip
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](
        **SIZE | fields | ids | {"vocab_size": len(tokenizer), "num_hidden_layers": n_layers}
    )
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(**ids | {"eos_token_id": tokenizer.convert_tokens_to_ids(stops)})
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")  # in shards, as large models are
    tokenizer.save_pretrained(folder)


def write_tokenizer(kind: str, texts: list[str]):
    """A byte-level BPE, or one that marks spaces and falls back to bytes, as SentencePiece does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special, bos, stops, template, marks_spaces = TOKENIZERS[kind]
    if marks_spaces:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=special[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder, alphabet = decoders.Sequence(parts), []
        special = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1100, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]  # bytes: text
    tokenizer = Tokenizer.from_str(json.dumps(content))
    names = {"pad_token": special[0], "bos_token": bos, "eos_token": stops[0]}
    others = [token for token in TOKENIZERS[kind][0] if token not in names.values() and kind not in UNNAMED]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=others, chat_template=template,
        **{name: token for name, token in names.items() if token},
    )  # fmt: skip


def write_to_hub(place: Path, entry: dict, family: str, texts: list[str]) -> None:
    """The replica's model and SAE in the cache `place` of the hub's client."""
    (source,) = [s for s in (entry["source"] if isinstance(entry["source"], list) else [entry["source"]]) if "id" in s]
    folder = hub_file(place, source["id"], "config.json").parent
    write_model(folder, family, entry["n_layers"], texts)
    sae = entry["sae"]
    weights = tiny_sae(WIDTH, sae["d_sae"])
    weights["W_dec"] = weights["W_dec"] / weights["W_dec"].norm(dim=-1, keepdim=True)
    weights["b_enc"] -= 1.2  # latents are rare: else each fires on a prompt
    write_release(place, sae["release"], sae["id"], weights)


def main(repository: Path, name: str) -> None:
    from ruamel.yaml import YAML

    root = Path(os.environ["ESR_ROOT"])
    entry = YAML(typ="safe", pure=True).load(repository / "data" / "models.yaml")[name]
    replica.copy_inputs(root, repository)
    texts = [line for file in sorted((root / "data" / "prompts").glob("*.txt")) for line in file.open()]
    replica.write_embedder(root, texts)
    write_to_hub(Path(os.environ["HF_HUB_CACHE"]), entry, name, texts)
    replica.write_parameters(root, repository, [name])
    registry = {name: entry, replica.EMBEDDER: replica.embedder_entry()}
    replica.write_registry(root, registry, [name])
    from esr.sae import neuronpedia

    def labelled(self, index: int) -> str:  # what Neuronpedia would reply
        return f"mentions of {['bread', 'guitars', 'rivers', 'chess'][index % 4]}"

    neuronpedia.Neuronpedia._request = labelled
    stages = [
        "fetch",
        "corpus",
        "sae",
        "relevance",
        "latents",
        "calibrate",
        "steer",
        "judge",
        *entry.get("experiments", []),
    ]
    runs = [("fetch", replica.EMBEDDER), *((stage, name) for stage in stages)]
    runs += [(stage, None) for stage in ("cross_judge", "measure", "figures", "power", "claims")]
    replica.run_all(root, runs, restarting=name)
    print(json.dumps({"done": name}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
