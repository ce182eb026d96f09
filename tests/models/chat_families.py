"""Tiny tokenizers with chat templates in the manner of the model families: their kinds of tokens, BOS and turns."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Explain how to bake bread.\n\nMix flour, water and salt; knead it for 10 minutes.",
    "user\nassistant\nsystem\nmodel\n\nYou are a helpful assistant. Today is the 26th of July 2024: user, assistant",
    "What is <b>bold</b> in HTML? The tag is <b> and the end of it is </b> | a table | of cells |",
]
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # Llama 3: the date in the system turn, which is always there
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
FIXED_DATE = HEADERS.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
INST = (  # prints no BOS and ignores the system turn
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def byte_pairs(special, template, *, bos=None, eos=None, adds_bos=False):
    """Byte-level BPE, as of GPT-2, Llama 3, Qwen and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return _wrapped(tokenizer, template, bos, eos, adds_bos)


def sentencepiece_bpe(special, template, *, bos=None, eos=None, adds_bos=False):
    """BPE on whole texts with a mark for the space and bytes for what is unknown, as of Gemma."""
    tokens = [*special, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n"]
    tokens += sorted({c for text in TEXTS for c in text} - {" ", "\n"})
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("b", "r"), ("e", "a"), ("br", "ea"), ("brea", "d"), ("e", "n")]
    tokens += [first + second for first, second in merges]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])  # Gemma's added tokens for runs of line breaks
    return _wrapped(tokenizer, template, bos, eos, adds_bos)


def unigram(special, template, *, bos=None, eos=None, adds_bos=False):
    """Unigram with a space put before each text, as of Llama 2 and T5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=180, initial_alphabet=[chr(i) for i in range(33, 127)], special_tokens=["<unk>", *special],
        unk_token="<unk>", show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return _wrapped(tokenizer, template, bos, eos, adds_bos)


def _wrapped(tokenizer, template, bos, eos, adds_bos):
    if adds_bos:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, chat_template=template)


IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
INSTRUCT = ["<s>", "</s>", "[INST]", "[/INST]"]
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURN = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]

# Name -> a function that makes the tokenizer, and whether a chat begins with BOS
FAMILIES = {
    "qwen": (lambda: byte_pairs(IM, CHATML, eos="<|im_end|>"), False),
    "smollm2": (lambda: byte_pairs(IM, CHATML, bos="<|im_start|>", eos="<|im_end|>"), True),
    "llama3": (lambda: byte_pairs(LLAMA, HEADERS, bos=LLAMA[0], eos="<|eot_id|>", adds_bos=True), True),
    "gemma": (lambda: sentencepiece_bpe(TURN, GEMMA, bos="<bos>", eos="<eos>", adds_bos=True), True),
    "mistral": (lambda: unigram(INSTRUCT, INST, bos="<s>", eos="</s>", adds_bos=True), True),
    "plain": (lambda: byte_pairs(["<|end|>"], PLAIN, eos="<|end|>"), False),
}
