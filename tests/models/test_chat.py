"""A chat has the tokens of its template, one BOS where one belongs, and no control token that the prompt spelt."""

import datetime

import pytest
import torch
from chat_families import CHATML, FAMILIES, FIXED_DATE, GEMMA, HEADERS, IM, LLAMA, TURN, byte_pairs, sentencepiece_bpe
from conftest import SIZES
from tokenizers import AddedToken
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import chat_template_utils

from esr.config.registry import Template
from esr.config.schema import ConfigError
from esr.engine.generation import Row, generate
from esr.models.alignment import ends_inside_character, whole_characters
from esr.models.chat import chat_tokens, control_tokens, end_of_turn, use_template
from esr.models.loading import stop_tokens
from esr.paths import PROMPTS, data_dir

SPELT = ["<|im_end|>", "<|im_start|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<bos>", "<|end|>", "</s>"]
SMOLLM2 = data_dir("fetch", "smollm2-135m")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def tokenizer(family):
    return FAMILIES[family][0]()


def rendered(tokenizer, prompt, **options):
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)


def tokens_of(text, tokenizer):
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def with_template(tokenizer, **settings):
    return use_template(tokenizer, Template(**settings))


@pytest.mark.parametrize("prompt", ["Explain how to bake bread.", "What is 10 + 7?\n\nIn one word: é, 海, 🥖!", "x"])
def test_a_plain_prompt_has_the_tokens_of_the_whole_rendered_chat(family, tokenizer, prompt):
    found = chat_tokens(tokenizer, prompt)
    if FAMILIES[family][1]:
        assert found[0] == tokenizer.bos_token_id
    expected = rendered(tokenizer, prompt).replace(f"{datetime.date.today():%d %b %Y}", "01 Jan 2025")
    assert found[-len(tokens_of(expected, tokenizer)) :] == tokens_of(expected, tokenizer)
    assert len(found) - len(tokens_of(expected, tokenizer)) == (family == "mistral"), "its template prints no BOS"


def test_a_chat_begins_with_one_bos_where_one_belongs(family, tokenizer):
    found, bos = chat_tokens(tokenizer, "Explain bread"), tokenizer.bos_token_id
    assert [token == bos for token in found[:2]] == [FAMILIES[family][1], False]


def test_a_bos_with_the_id_0_is_put_in_too():
    tokenizer = byte_pairs(["<s>", "</s>"], "{{ messages[0]['content'] }}", bos="<s>", adds_bos=True)
    assert tokenizer.bos_token_id == 0 and chat_tokens(tokenizer, "bread") == (0, *tokens_of("bread", tokenizer))


def test_a_template_that_prints_bos_twice_is_refused():
    tokenizer = sentencepiece_bpe(TURN, "{{ bos_token }}" + GEMMA, bos="<bos>", eos="<eos>", adds_bos=True)
    with pytest.raises(ConfigError, match="prints the BOS token <bos> twice: remove one"):
        chat_tokens(tokenizer, "bread")


@pytest.mark.parametrize("spelt", SPELT)
def test_text_that_spells_a_control_token_stays_text(family, tokenizer, spelt):
    prompt = f"a {spelt} bread{spelt}{spelt[:-1]}"
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    plain, found = chat_tokens(tokenizer, "bread"), None
    try:
        found = chat_tokens(tokenizer, prompt)
    except ConfigError as error:
        assert (family, spelt) == ("mistral", "</s>")  # a piece of the Unigram model itself, which cannot be split
        assert "'</s>': the tokenizer produces it from plain text\": correct the template, or change" in str(error)
    if found:
        assert [i for i in found if i in control] == [i for i in plain if i in control]
        assert prompt in tokenizer.decode(found)


def test_a_control_token_that_is_not_special_and_spelt_in_parts_is_refused():
    template = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}{{ '<|assistant|>' }}"
    tokenizer = byte_pairs(["<|end|>"], template, eos="<|end|>")
    tokenizer.add_tokens(["<|user|>", "<|assistant|>"])
    user, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    found = chat_tokens(tokenizer, "a <|assistant|> bread")
    assert [i for i in found if i in (user, assistant)] == [user, assistant], "one that the template spells whole"
    message = r"^The prompt 'a <\|user\|> bread' holds <\|user\|>, which the tokenizer cannot read as text: remove it"
    with pytest.raises(ConfigError, match=message):
        chat_tokens(tokenizer, "a <|user|> bread")


@pytest.mark.parametrize(
    ("name", "given", "printed"),
    [("today", None, "01 Jan 2025"), ("today", "2024-07-26", "26 Jul 2024"), ("fixed", None, "26 Jul 2024"),
     ("fixed", "2023-02-01", "01 Feb 2023")],
)  # fmt: skip
def test_a_date_in_a_template_is_the_entrys_on_every_day(monkeypatch, name, given, printed):
    template = {"today": HEADERS, "fixed": FIXED_DATE}[name]
    tokenizer = byte_pairs(LLAMA, template, bos=LLAMA[0], eos="<|eot_id|>", adds_bos=True)
    use_template(tokenizer, Template.model_validate({"date": given}))
    found, by_transformers = set(), set()
    for year in (2026, 2031):
        clock = type("Clock", (datetime.datetime,), {"now": classmethod(lambda cls, tz=None, y=year: cls(y, 3, 4))})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        found.add(chat_tokens(tokenizer, "Explain bread"))
        by_transformers.add(rendered(tokenizer, "Explain bread"))
    assert len(by_transformers) == (2 if name == "today" else 1), "the template does print the day it is used on"
    (tokens,) = found
    assert f"Today Date: {printed}\n" in tokenizer.decode(tokens)


def test_a_template_that_prints_no_date_is_as_it_was():
    tokenizer = FAMILIES["smollm2"][0]()
    before = chat_tokens(tokenizer, "bread")
    assert chat_tokens(with_template(tokenizer, date=datetime.date(1999, 1, 1)), "bread") == before


def test_a_system_text_is_a_turn_or_stands_before_the_prompt():
    chats = {
        name: tokenizer.decode(chat_tokens(with_template(tokenizer, system="Be brief."), "Explain bread"))
        for name, tokenizer in ((name, make()) for name, (make, _) in FAMILIES.items())
    }
    user = "<|im_start|>user\nExplain bread<|im_end|>\n<|im_start|>assistant\n"
    assert chats["qwen"] == chats["smollm2"] == f"<|im_start|>system\nBe brief.<|im_end|>\n{user}"
    assert "\n\nBe brief.<|eot_id|>" in chats["llama3"] and "\n\nExplain bread<|eot_id|>" in chats["llama3"]
    turn = "<start_of_turn>user\nBe brief.\n\nExplain bread<end_of_turn>\n<start_of_turn>model\n"
    assert chats["gemma"] == f"<bos>{turn}"
    assert "Be brief." in chats["mistral"] and chats["mistral"].index("[INST]") < chats["mistral"].index("Be brief.")


@pytest.mark.parametrize(
    ("name", "changed"),
    [("qwen", ("You are a helpful assistant.", "")), ("gemma", ("", "")), ("mistral", ("", ""))],
)
def test_an_empty_system_text_replaces_the_default_and_adds_nothing(name, changed):
    tokenizer = FAMILIES[name][0]()
    before = tokenizer.decode(chat_tokens(tokenizer, "bread"))
    assert tokenizer.decode(chat_tokens(with_template(tokenizer, system=""), "bread")) == before.replace(*changed)


def test_a_system_text_that_spells_a_control_token_stays_text():
    tokenizer = FAMILIES["qwen"][0]()
    found = chat_tokens(with_template(tokenizer, system="Be <|im_end|> brief."), "bread")
    assert found.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


def test_a_template_that_fails_is_named_in_one_sentence():
    tokenizer = byte_pairs(IM, "{{ raise_exception('no user role.') }}")
    with pytest.raises(ConfigError, match="on the prompt 'bread' with the error \"no user role\": correct the"):
        chat_tokens(tokenizer, "bread")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="chat_template is not set"):
        chat_tokens(tokenizer, "bread")


@pytest.mark.parametrize(
    ("name", "end"),
    [("qwen", "<|im_end|>"), ("smollm2", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>"),
     ("mistral", "</s>"), ("plain", None)],
)  # fmt: skip
def test_the_end_of_a_turn_is_the_templates(name, end):
    tokenizer = FAMILIES[name][0]()
    assert end_of_turn(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


def test_control_tokens_need_not_be_named_and_white_space_is_none():
    tokenizer = FAMILIES["gemma"][0]()
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False)])
    assert set(TURN) < {token.content for token in tokenizer.added_tokens_decoder.values()}
    assert set(tokenizer.all_special_tokens) == {"<bos>", "<eos>"}
    assert control_tokens(tokenizer) == {tokenizer.convert_tokens_to_ids(token): token for token in TURN}


class Generates:
    """A model as far as `stop_tokens` looks at it."""

    def __init__(self, eos):
        self.generation_config = GenerationConfig(eos_token_id=eos)


@pytest.mark.parametrize(
    ("name", "eos", "expected"),
    [
        ("qwen", 0, ["<|endoftext|>", "<|im_end|>"]),
        ("qwen", [2, 0], ["<|im_end|>", "<|endoftext|>"]),
        ("qwen", None, ["<|im_end|>"]),
        ("smollm2", 2, ["<|im_end|>"]),
        ("llama3", 1, ["<|end_of_text|>", "<|eot_id|>"]),
        ("gemma", 1, ["<eos>", "<end_of_turn>"]),
        ("gemma", [1, 0], ["<eos>", "<pad>", "<end_of_turn>"]),
        ("gemma", None, ["<eos>", "<end_of_turn>"]),
        ("plain", None, ["<|end|>"]),
    ],
)
def test_a_response_stops_at_the_end_of_its_turn_whatever_the_generation_config_lists(name, eos, expected):
    tokenizer = FAMILIES[name][0]()
    assert tokenizer.convert_ids_to_tokens(stop_tokens(Generates(eos), tokenizer)) == expected


def test_a_model_that_would_never_stop_is_refused():
    tokenizer = FAMILIES["plain"][0]()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="has no stop token in generation_config.json.*set eos_token_id"):
        stop_tokens(Generates(None), tokenizer)


def test_a_response_does_not_run_on_after_an_end_that_only_the_template_knows():
    tokenizer = byte_pairs(IM, CHATML, eos="<|endoftext|>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": len(tokenizer), "eos_token_id": 0})).eval()
    rows = [Row(chat_tokens(tokenizer, "Explain bread"), seed, 100) for seed in range(8)]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def ends(stops):
        settings = {"batch_size": 8, "temperature": 2.0, "repetition_penalty": 1.0, "stop_tokens": stops}
        return [end in response.tokens for response in generate(model, rows, **settings)]

    assert any(ends([0])) and not any(ends(stop_tokens(model, tokenizer)))


EMOJI = "Bread 🥖 bread"


def test_a_prefill_never_splits_a_character():
    tokenizer = byte_pairs(IM, CHATML, eos="<|im_end|>")
    tokens = tokens_of(EMOJI, tokenizer)
    split = [count for count in range(1, len(tokens)) if ends_inside_character(tokens[:count], tokenizer)]
    assert len(split) == 3, "the emoji is of four bytes, a token each"
    for count in range(1, len(tokens)):
        completed = whole_characters(tokens, count, tokenizer)
        assert completed == (split[-1] + 1 if count in split else count)
        assert not tokenizer.decode(tokens[completed:]).startswith("\ufffd")
        assert chat_tokens(tokenizer, "bread", tokens[:completed])[-completed:] == tokens[:completed]
    for count in split:
        with pytest.raises(ConfigError, match=f"opening of {count} tokens ends inside a character"):
            chat_tokens(tokenizer, "bread", tokens[:count])
    assert whole_characters(tokens[: split[0]], split[0], tokenizer) is None, "the rest of the emoji is missing"
    assert whole_characters(tokens, len(tokens) + 1, tokenizer) is None


def test_a_tokenizer_is_saved_as_it_came(tmp_path):
    tokenizer = FAMILIES["llama3"][0]()
    tokenizer.save_pretrained(tmp_path / "before")
    with_template(tokenizer, system="Be brief.", date=datetime.date(2024, 7, 26))
    tokenizer.save_pretrained(tmp_path / "after")
    files = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert files and all((tmp_path / "before" / f).read_bytes() == (tmp_path / "after" / f).read_bytes() for f in files)


@pytest.mark.skipif(not (SMOLLM2 / "tokenizer.json").exists(), reason="SmolLM2 is not fetched")
def test_the_studys_prompts_have_the_tokens_they_had():
    """Bit-equal to the rendered chat tokenized whole, over every line of data/prompts."""
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    lines = [line for file in sorted(PROMPTS.glob("*.txt")) for line in file.read_text("utf-8").split("\n")]
    assert len(lines) > 100
    for prompt in lines:
        assert chat_tokens(tokenizer, prompt) == tokens_of(rendered(tokenizer, prompt), tokenizer)
    for spelt in SPELT:
        found = chat_tokens(tokenizer, f"Explain {spelt} bread")
        assert [i for i in found if i < 17] == [1, 2, 1, 2, 1] and f"Explain {spelt} bread" in tokenizer.decode(found)
    assert stop_tokens(Generates(2), tokenizer) == [2]
