"""Training and merging on tiny models: loss where it belongs, lower layers untouched, the same bits every time."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import judgement, tiny_llama
from safetensors.torch import load_file

from esr.engine.attention import attention_by
from esr.engine.workers import Workers
from esr.experiments import finetuning, lora
from esr.experiments.finetuning import save_adapter
from esr.experiments.lora import Recipe, batch_loss, only_layers, predictions, train
from esr.experiments.self_corrections import Example
from esr.models import merging
from esr.models.merging import merge
from esr.statistics.metrics import table
from esr.statistics.outcomes import cut_table
from esr.storage.files import read_rows
from esr.storage.records import Cut

OPENERS = (3, 4)  # token ids with which a restart begins
RECIPE = Recipe(
    first_layer=2,
    openers=OPENERS,
    rank=4,
    lora_alpha=8,
    dropout=0.1,
    lr=3e-2,
    warmup_steps=1,
    epochs=12,
    batch_size=3,
    seed=1,
)


def example(seed: int, length: int, loss_from: int) -> Example:
    tokens = torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(
        kind="plain",
        prompt_id=f"p{seed}",
        tokens=tokens,
        targets=list(range(loss_from, length)),
    )


EXAMPLES = [example(i, 9 + i % 5, 3 + i % 4) for i in range(10)]


def inputs(model, examples, first_layer=2):
    return [lora._lower_residuals(model, e, first_layer) for e in examples]


@pytest.mark.parametrize("part", [7, 1000])
def test_the_loss_is_that_of_transformers_over_the_marked_tokens(model, part, monkeypatch):
    monkeypatch.setattr(lora, "LOSS_PART", part)
    labels = [torch.tensor([t if i in e.targets else -100 for i, t in enumerate(e.tokens)]) for e in EXAMPLES]
    losses, counts = [], []
    for e, label in zip(EXAMPLES, labels, strict=True):
        losses.append(model(torch.tensor([e.tokens]), labels=label[None]).loss.item())
        counts.append(len(e.targets))
    expected = sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)
    cached = inputs(model, EXAMPLES)
    with only_layers(model, range(2, 3)), attention_by(model, "eager"):
        assert batch_loss(model, cached, EXAMPLES, RECIPE).item() == pytest.approx(expected, rel=1e-5)


def weighted(restart: float = 1.0, no_restart: float = 1.0) -> Recipe:
    return replace(RECIPE, restart_weight=restart, no_restart_weight=no_restart)


def test_restarts_are_wanted_or_not_by_the_mass_of_their_first_tokens():
    model, text = tiny_llama(), EXAMPLES[0].model_copy(update={"targets": [], "restart": [4], "no_restart": [6]})
    logits = model(torch.tensor([text.tokens])).logits[0]
    mass = logits[[3, 5]].softmax(-1)[:, list(OPENERS)].sum(-1)
    wanted, unwanted = -mass[0].log(), -(1 - mass[1]).log()
    both = text.model_copy(update={"targets": [6, 7]})  # token 6 is predicted as well
    cross_entropy = torch.nn.functional.cross_entropy(logits[[5, 6]], torch.tensor(text.tokens[6:8]))
    lower = inputs(model, [text])
    with only_layers(model, range(2, 3)):
        alone, mixed = (batch_loss(model, lower, [e], weighted(7.0, 3.0)).item() for e in (text, both))
    assert alone == pytest.approx((7 * wanted + 3 * unwanted).item() / 10, rel=1e-5)
    assert mixed == pytest.approx((2 * cross_entropy + 7 * wanted + 3 * unwanted).item() / 12, rel=1e-5)


def test_training_silences_the_first_tokens_of_a_restart_where_none_belongs():
    model = tiny_llama()
    silent = [e.model_copy(update={"targets": [], "no_restart": [5, 7]}) for e in EXAMPLES]
    recipe = replace(RECIPE, openers=tuple(range(3, 60)), epochs=8)
    curve = train(model, silent, recipe)[1]
    assert sum(s.loss for s in curve[-4:]) < 0.7 * sum(s.loss for s in curve[:4])


def test_a_loss_that_is_no_number_stops_the_training():
    """As without openers, where the log-probability of a restart is minus infinity."""
    wanted = [e.model_copy(update={"restart": [5]}) for e in EXAMPLES]
    with pytest.raises(FloatingPointError, match="loss of training step 1 is"):
        train(tiny_llama(), wanted, replace(RECIPE, openers=()))


def test_every_target_is_predicted_from_the_token_before_and_no_other():
    first = example(0, 6, 4).model_copy(update={"restart": [4], "no_restart": [2, 6]})
    found = predictions([first, example(1, 5, 4)], weighted(5.0, 2.0))
    assert found.rows.tolist() == [0, 0, 0, 0, 1]
    assert found.positions.tolist() == [1, 3, 4, 5, 3]  # the last: behind the text
    assert found.target_weights.tolist() == [0, 1, 1, 0, 1]
    assert found.restart_weights.tolist() == [0, 5, 0, 0, 0]
    assert found.no_restart_weights.tolist() == [2, 0, 0, 2, 0]
    assert [found.targets[i].item() for i in (1, 2, 4)] == [*first.tokens[4:], example(1, 5, 4).tokens[4]]


def test_layers_run_in_two_parts_give_the_whole(model):
    tokens = torch.tensor([[5, 6, 7, 8]])
    whole = model.model(tokens).last_hidden_state
    with only_layers(model, range(2)):
        lower = model.model(tokens).last_hidden_state
    with only_layers(model, range(2, 3)):
        assert torch.equal(model.model(inputs_embeds=lower).last_hidden_state, whole)
    assert torch.equal(model.model(tokens).last_hidden_state, whole)


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention = model.config._attn_implementation
    steps = []
    state, curve = train(model, EXAMPLES, RECIPE, lambda examples, tokens: steps.append((examples, tokens)))
    per_epoch = len(curve) // RECIPE.epochs
    first, last = curve[:per_epoch], curve[-per_epoch:]
    assert sum(s.loss for s in last) < 0.9 * sum(s.loss for s in first)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not model.training and model.config._attn_implementation == attention
    assert {int(name.split("layers.")[1].split(".")[0]) for name in state} == {2}
    assert all(value.dtype == torch.float32 for value in state.values())
    assert sum(n for n, _ in steps) == len(EXAMPLES) * RECIPE.epochs
    assert curve[-1].tokens == sum(t for _, t in steps) == RECIPE.epochs * sum(len(e.tokens) for e in EXAMPLES)


def test_training_repeats_to_the_bit_and_follows_its_seed():
    one, two = (train(tiny_llama(), EXAMPLES, RECIPE) for _ in range(2))
    assert one[1] == two[1] and all(torch.equal(one[0][k], two[0][k]) for k in one[0])
    other = train(tiny_llama(), EXAMPLES, replace(RECIPE, seed=2))
    assert any(not torch.equal(one[0][k], other[0][k]) for k in one[0])


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A tiny model in a fetched folder, as the registry would name it."""
    folder = tmp_path / "fetch"
    tiny_llama().to(torch.bfloat16).save_pretrained(folder)
    (folder / "LICENSE").write_text("free")
    load = type(tiny_llama()).from_pretrained
    monkeypatch.setattr(merging, "model_folder", lambda model_id: folder)
    monkeypatch.setattr("esr.models.loading.model_folder", lambda model_id: folder)
    monkeypatch.setattr(merging, "load_tokenizer", lambda model_id: _Tokenizer())
    return load(folder, dtype=torch.float32).eval()


class _Tokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merged_model_is_the_adapted_one_and_lower_layers_keep_their_bits(base, tmp_path, monkeypatch, dtype):
    from peft import PeftModel

    monkeypatch.setattr("esr.models.loading.compute_dtype", lambda: dtype)  # of the machine alone

    state, curve = train(base, EXAMPLES, RECIPE)
    save_adapter("tiny", state, curve, RECIPE, 3, tmp_path / "adapter")
    merge("tiny", tmp_path / "adapter", tmp_path / "merged")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    merged = type(base).from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokens = torch.tensor([EXAMPLES[0].tokens])
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected, rounded = adapted(tokens).logits, merged(tokens).logits
    plain = adapted.unload()
    assert (expected - plain(tokens).logits).abs().max() > 1
    assert (expected - rounded).abs().max() < 0.02 * expected.abs().max()  # bfloat16 weights
    before, after = plain.state_dict(), merged.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("model.layers.2.") and name.endswith("_proj.weight") for name in changed)
    assert read_rows(tmp_path / "adapter" / "curve.jsonl", lora.TrainingStep) == curve
    assert {"LICENSE", "tokenizer.json", "config.json"} <= {p.name for p in (tmp_path / "merged").iterdir()}


def test_the_adapter_says_which_model_it_belongs_to_and_no_path(base, tmp_path):
    state, curve = train(base, EXAMPLES, RECIPE)
    save_adapter("tiny", state, curve, RECIPE, 3, tmp_path / "adapter")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "tiny"' in text
    assert str(tmp_path) not in text


def test_without_an_adapter_nothing_is_merged(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        merge("tiny", tmp_path / "none", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_steering_vectors_are_added_to_what_the_first_adapter_reads_and_change_the_training():
    """No vector, and a vector of zeros, are the same; another vector is not, whichever example has it."""
    vector = torch.ones(32)
    plain = train(tiny_llama(), EXAMPLES, RECIPE)[1]
    assert train(tiny_llama(), EXAMPLES, RECIPE, None, [0 * vector] * len(EXAMPLES))[1] == plain
    assert train(tiny_llama(), EXAMPLES, RECIPE, None, [vector, *[None] * (len(EXAMPLES) - 1)])[1] != plain


def test_adapters_begin_right_above_the_steered_layer(base, tmp_path):
    with pytest.raises(ValueError, match="first_layer is 2; smollm2-135m is steered at layer 17"):
        finetuning.train_all("smollm2-135m", {"0.5": EXAMPLES}, {"0.5": RECIPE}, Workers(0))


def test_runs_are_kept_and_not_repeated(base, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "model_entry", lambda model_id: SimpleNamespace(steer_layer=RECIPE.first_layer - 1))
    monkeypatch.setattr(finetuning, "residual_norm", lambda model_id: 1.0)
    monkeypatch.setattr(finetuning, "training_provenance", lambda model_id: {})
    monkeypatch.setattr(finetuning, "load_directions", lambda model_id, latents: torch.ones(len(latents), 32))
    monkeypatch.setattr("esr.engine.workers.CACHE", tmp_path / "cache")
    monkeypatch.setattr(finetuning, "resident_model", lambda model_id: (tiny_llama(), None))
    sets = {"0.1": EXAMPLES[:4], "0.9": EXAMPLES[4:]}
    recipes = dict.fromkeys(sets, RECIPE)
    first = finetuning.train_all("tiny", sets, recipes, Workers(0))
    monkeypatch.setattr(finetuning, "train", lambda *_: pytest.fail("trained again"))
    again = finetuning.train_all("tiny", sets, recipes, Workers(0))
    assert list(again) == ["0.1", "0.9"]
    for name in sets:
        assert first[name][1] == again[name][1]
        assert all(torch.equal(first[name][0][k], again[name][0][k]) for k in first[name][0])
    assert first["0.1"][1] != first["0.9"][1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"lr": -1e-3},
        {"dropout": 1.0},
        {"first_layer": 0},
        {"epochs": 0},
        {"warmup_steps": -1},
        {"restart_weight": 0.0},
        {"no_restart_weight": 0.0},
    ],
)
def test_a_wrong_recipe_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**{**vars(RECIPE), **wrong})


@pytest.mark.parametrize("examples, first_layer", [([], 2), (EXAMPLES, 3)])
def test_no_examples_and_no_layers_are_refused(examples, first_layer):
    with pytest.raises(ValueError, match="a layer from 1 to 2"):
        train(tiny_llama(), examples, Recipe(**{**vars(RECIPE), "first_layer": first_layer}))


def test_training_is_measured_beside_the_base_on_the_same_trials():
    def plain(latent, condition):
        made = judgement(latent=latent, scores=(20.0,), condition=condition)
        return made.model_copy(update={"cuts": [Cut(at=1, before=20.0, after=30.0 if latent % 2 else 10.0)]})

    rows = [plain(x, "steered") for x in range(20)]
    rows += [judgement(latent=x, scores=(20.0, 90.0), condition="0.1 steered") for x in range(12)]
    rows += [plain(x, "0.1 steered") for x in range(12, 20)]
    rows += [judgement(latent=99, scores=(20.0, 90.0), condition="0.1 steered")]  # not measured in the base
    found = finetuning.effects_of_training(
        table(rows), cut_table(rows), "steered", "0.1 steered", n_bootstrap=400, seed=1
    )
    assert (
        found["multi_attempt_difference"].estimate == pytest.approx(0.6) and found["multi_attempt_difference"].n == 20
    )
    assert found["multi_attempt_difference"].low > 0.2
    # every restart improves, and so would half of the arbitrary cuts
    assert found["esr_above_placebo_difference"].estimate == pytest.approx(0.6 - 0.3)
