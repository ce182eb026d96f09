"""The SAE's own training pass, files and measures, on a tiny random model and made-up residuals."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from esr.sae import contexts
from esr.sae.contexts import Contexts, read_contexts, strongest_contexts, write_contexts
from esr.sae.corpus import batches, read_corpus, read_texts, write_texts
from esr.sae.encoding import encoded, median_norm
from esr.sae.loading import save_sae
from esr.sae.quality import dead_fraction, document_residuals, explained_variance, l0, spliced_cross_entropy

D_MODEL, PREFIX = 16, 3


@pytest.fixture(scope="module")
def tiny_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=50,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def documents():
    """Twelve documents of different lengths; the first three tokens are the template's."""
    generator = torch.Generator().manual_seed(1)
    lengths = range(5, 17)
    return [[7, 8, 9, *torch.randint(10, 50, (n,), generator=generator).tolist()] for n in lengths]


@pytest.fixture
def shards(tmp_path, tiny_model, documents):
    paths = []
    for i, part in enumerate((documents[:5], documents[5:])):
        tokens = [t for d in part for t in d]
        shard = {
            "tokens": torch.tensor(tokens, dtype=torch.int32),
            "starts": torch.tensor([0, *map(len, part)]).cumsum(0)[:-1],
            "responses": torch.full((len(part),), 5),
            "residual.1": document_residuals(tiny_model, 1, part, prefix=0, first=1).bfloat16(),
        }
        paths.append(tmp_path / f"{i}.safetensors")
        save_file(shard, paths[-1])
    return paths


@pytest.fixture
def residuals():
    """Sums of three of twelve directions, far from the origin: what a good SAE of k = 3 can explain."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(12, D_MODEL, generator=generator), dim=-1)
    active = torch.rand(4000, 12, generator=generator).argsort(1) < 3
    strength = 5 + 5 * torch.rand(4000, 12, generator=generator)
    return ((active * strength) @ directions + 3.0).bfloat16()


def recipe(**changes):
    from esr.sae.training import Recipe

    small = dict(d_sae=24, k=3, tokens=30_000, batch_size=200, lr=5e-3, dead_after=2000, aux_tokens=64)
    return Recipe(**small | changes)


def train(residuals, folder=None, every=120.0, **changes):
    from esr.sae.training import train_sae

    return train_sae(residuals, recipe(**changes), model_name="tiny", layer=1, checkpoints=folder, every=every)


def test_corpus_leaves_the_shared_prefix_out(shards, documents):
    corpus = read_corpus(shards, layer=1)
    assert corpus.prefix == PREFIX
    assert [corpus.document(i) for i in range(12)] == documents
    assert len(corpus.residuals) == len(corpus.where) == sum(len(d) - PREFIX for d in documents)
    kept = corpus.tokens[corpus.where].tolist()
    assert kept == [t for d in documents for t in d[PREFIX:]]
    assert corpus.document_of(corpus.where).bincount().tolist() == [len(d) - PREFIX for d in documents]


def test_residuals_computed_again_are_those_of_the_shards(shards, documents, tiny_model):
    corpus = read_corpus(shards, layer=1)
    again = document_residuals(tiny_model, 1, documents, PREFIX, first=1, batch_size=5)
    torch.testing.assert_close(again.bfloat16(), corpus.residuals)


def test_residuals_as_huge_as_bos_are_left_out(shards, documents):
    from safetensors.torch import load_file

    shard = load_file(shards[0])
    shard["residual.1"][len(documents[0]) - 1] *= 1000
    save_file(shard, shards[0])
    corpus, whole = read_corpus(shards, layer=1), sum(len(d) - PREFIX for d in documents)
    assert len(corpus.residuals) == len(corpus.where) == whole - 1
    assert len(documents[0]) - 1 not in corpus.where.tolist()


def test_a_missing_layer_is_refused_with_those_there_are(shards):
    with pytest.raises(ValueError, match="no residuals of layer 2; it has layers 1"):
        read_corpus(shards, layer=2)
    with pytest.raises(ValueError, match="no shard"):
        read_corpus([])


def test_texts_survive_the_disk(shards, tmp_path):
    corpus = read_corpus(shards)
    write_texts(corpus, tmp_path / "texts.safetensors")
    again = read_texts(tmp_path / "texts.safetensors")
    assert again.prefix == PREFIX
    for name in ("tokens", "starts", "responses", "where"):
        assert torch.equal(getattr(again, name), getattr(corpus, name)), name


def test_batches_go_through_all_tokens_and_resume_where_they_stopped():
    residuals = torch.arange(10.0)[:, None]
    stream = batches(residuals, 3, seed=4)
    first = [next(stream) for _ in range(7)]
    assert len({float(x) for b in first[:3] for x in b}) == 9
    assert [b.tolist() for b in first[:3]] != [b.tolist() for b in first[3:6]]
    resumed = batches(residuals, 3, seed=4, first=4)
    assert all(torch.equal(next(resumed), b) for b in first[4:])
    with pytest.raises(ValueError, match="batch_size is 11"):
        next(batches(residuals, 11, seed=0))


def test_the_sparse_pass_has_the_loss_and_gradients_of_the_stock_class():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    from esr.sae.training import SparseBatchTopK

    torch.manual_seed(0)
    config = BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=48, k=4, aux_loss_coefficient=0.5)
    stock, sparse = BatchTopKTrainingSAE(config), SparseBatchTopK(config)
    stock.W_dec.data *= 1 + torch.rand(48, 1)
    stock.b_enc.data += 0.1 * torch.randn(48)
    stock.b_dec.data += torch.randn(D_MODEL)
    sparse.load_state_dict(stock.state_dict())
    sparse.precision = torch.float32
    dead = torch.arange(48) % 4 == 0
    step = TrainStepInput(torch.randn(64, D_MODEL), {}, dead, 0, False)
    outputs = [sae.training_forward_pass(step) for sae in (stock, sparse)]
    for output in outputs:
        output.loss.backward()
    assert outputs[0].losses["auxiliary_reconstruction_loss"].item() > 0
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss)
    torch.testing.assert_close(outputs[1].feature_acts.to_dense(), outputs[0].feature_acts)
    torch.testing.assert_close(sparse.topk_threshold, stock.topk_threshold)
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(dict(sparse.named_parameters())[name].grad, parameter.grad, msg=name)


def test_training_explains_the_residuals_and_survives_the_disk(residuals, tmp_path):
    from sae_lens import SAE

    save_sae(train(residuals), tmp_path)
    sae = SAE.load_from_disk(tmp_path)
    assert explained_variance(sae, residuals) > 0.9
    assert l0(sae, residuals) == pytest.approx(3, abs=0.6)
    assert dead_fraction(sae, residuals) < 0.5
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(24), atol=0.01, rtol=0)
    assert sae.cfg.metadata.hook_name == "model.layers.1"


def test_a_killed_training_goes_on_to_the_same_weights(residuals, tmp_path, monkeypatch):
    from sae_lens.training.sae_trainer import SAETrainer

    changes = {"tokens": 4000}
    whole = train(residuals, **changes)
    step, calls = SAETrainer.step, []

    def dying_step(self, batch):
        if len(calls) == 11:
            raise KeyboardInterrupt
        calls.append(batch)
        return step(self, batch)

    monkeypatch.setattr(SAETrainer, "step", dying_step)
    with pytest.raises(KeyboardInterrupt):
        train(residuals, tmp_path, every=0.0, **changes)
    monkeypatch.setattr(SAETrainer, "step", lambda self, batch: (calls.append(batch), step(self, batch))[1])
    resumed = train(residuals, tmp_path, every=0.0, **changes)
    assert len(calls) == 20  # eleven steps before the end, nine after it: none twice
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("changes", [{"k": 0}, {"k": 24}, {"decay_share": 0.99}, {"tokens": -1}])
def test_impossible_recipes_are_refused(changes):
    with pytest.raises(ValueError, match="|".join(changes)):
        recipe(**changes)


class Identity(torch.nn.Module):
    """Stands in for an SAE: latent i reads and writes dimension i; what is not positive is lost."""

    def __init__(self):
        super().__init__()
        self.W_dec = torch.nn.Parameter(torch.eye(D_MODEL))

    def encode(self, x):
        return x.clamp(min=0)

    def decode(self, acts):
        return acts

    def forward(self, x):
        return x


def test_measures_on_a_known_case():
    sae = Identity()
    x = torch.zeros(4, D_MODEL)
    x[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x[0, 1] = -1.0
    assert l0(sae, x) == 1.0
    assert dead_fraction(sae, x) == pytest.approx(15 / 16)
    assert explained_variance(sae, x) == pytest.approx(1 - 1 / (5 + 0.75))
    assert median_norm(x) == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_are_read_in_the_compute_dtype_never_in_that_of_autocast(monkeypatch, dtype):
    monkeypatch.setattr("esr.sae.encoding.compute_dtype", lambda: dtype)
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)  # as it is on a GPU; residuals overflow it
    try:
        sae = SimpleNamespace(W_dec=torch.eye(4), encode=lambda x: x @ torch.eye(4))
        [(_, acts)] = encoded(sae, torch.full((2, 4), 1e5))
    finally:
        torch.set_autocast_dtype("cpu", before)
    assert acts.dtype == dtype and acts.isfinite().all()


def test_splicing_the_truth_costs_nothing_and_nothing_costs_much(tiny_model, documents):
    losses = spliced_cross_entropy(tiny_model, Identity(), 1, documents, PREFIX, first=1, batch_size=5)
    assert losses["spliced"] == pytest.approx(losses["clean"], abs=1e-5)
    assert losses["recovered"] == pytest.approx(1, abs=1e-3)
    assert abs(losses["zeroed"] - losses["clean"]) > 1e-3
    one_by_one = spliced_cross_entropy(tiny_model, Identity(), 1, documents, PREFIX, first=1, batch_size=1)
    assert one_by_one == pytest.approx(losses, abs=1e-4)
    assert not tiny_model.model.layers[1]._forward_hooks


def test_contexts_are_the_strongest_tokens_one_per_document(shards):
    corpus = read_corpus(shards, layer=1)
    sae = Identity()
    found = strongest_contexts(sae, corpus, per_latent=4, documents_at_once=5)
    acts = sae.encode(corpus.residuals.float())
    torch.testing.assert_close(found.density, (acts > 0).float().mean(0))
    owner = corpus.document_of(corpus.where)
    for latent in range(D_MODEL):
        peaks = torch.stack([acts[owner == d, latent].max() for d in range(12)])
        torch.testing.assert_close(found.activation[latent], peaks.sort(descending=True).values[:4])
        assert len(set(found.document[latent].tolist())) == 4
        place = corpus.starts[found.document[latent]] + found.position[latent]
        rows = torch.searchsorted(corpus.where, place)
        torch.testing.assert_close(acts[rows, latent], found.activation[latent])


def test_shipped_contexts_serve_the_corpus_they_are_places_in_alone(tmp_path, monkeypatch):
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae/contexts.safetensors").touch()
    monkeypatch.setattr(contexts, "ROOT", tmp_path)
    source = SimpleNamespace(kind="folder", path="sae")
    for corpus, folder in (
        (None, None),
        ("other/corpus.safetensors", None),
        ("sae/corpus.safetensors", tmp_path / "sae"),
    ):
        monkeypatch.setattr(contexts, "model_entry", lambda _id, c=corpus: SimpleNamespace(sae=source, corpus=c))
        assert contexts.trained_folder("tiny") == folder


def test_contexts_survive_the_disk(tmp_path):
    contexts = Contexts(
        torch.rand(5, 3) * 50,
        torch.randint(0, 9000, (5, 3)),
        torch.randint(0, 300, (5, 3)),
        torch.rand(5),
        186.5,
        1_700_000,
    )
    path = tmp_path / "contexts.safetensors"
    write_contexts(contexts, path)
    again = read_contexts(path)
    torch.testing.assert_close(again.activation, contexts.activation, rtol=1e-3, atol=0.05)
    assert torch.equal(again.document, contexts.document) and torch.equal(again.position, contexts.position)
    assert replace(again, activation=0, document=0, position=0, density=0) == replace(
        contexts, activation=0, document=0, position=0, density=0
    )
    with pytest.raises(FileNotFoundError, match="the stage sae writes it"):
        read_contexts(tmp_path / "none.safetensors")


def test_activations_beyond_float16_are_written_as_its_largest(tmp_path):
    activation = torch.tensor([[1e6, 70_000.0, 65_504.0], [8032.0, 0.1, 0.0]])
    places, path = torch.zeros(2, 3, dtype=torch.long), tmp_path / "contexts.safetensors"
    write_contexts(Contexts(activation, places, places, torch.ones(2), 1.0, 2), path)
    again = read_contexts(path).activation
    assert again[0].tolist() == [65_504.0] * 3
    assert torch.equal(again[1], activation[1].half().float())
