"""One convention for SAEs of any source, and a few latents read without the rest."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from releases import hub_file, offline_cache, tiny_sae, write_folder, write_release
from sae_lens import SAE
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from esr.config.registry import FolderSae, HubSae, ReleaseSae
from esr.config.schema import ConfigError
from esr.engine.interventions import Step, ZeroAblate
from esr.engine.sinks import Sinks
from esr.paths import ROOT
from esr.sae import formats, loading
from esr.sae.encoding import encoded, tokens_at_once

LATENTS = [7, 3, 40, 63]
HIDDEN = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
RELEASES = {  # float32, b_dec not subtracted from the input
    "standard": ("deepseek-r1-distill-llama-8b-qresearch", "blocks.19.hook_resid_post", 19),
    "jumprelu": ("gemma-scope-2b-pt-res-canonical", "layer_16/width_16k/canonical", 16),
}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    return offline_cache(tmp_path, monkeypatch)


@pytest.fixture
def use(monkeypatch):
    """`use(source)`: the SAE of the model "tiny" has this source."""
    monkeypatch.setenv("ESR_DEVICE", "cpu")

    def entry_has(source):
        monkeypatch.setattr(loading, "model_entry", lambda _id: SimpleNamespace(sae=source))

    return entry_has


def folder_of(path, layer=1, d_sae=64):
    return FolderSae(kind="folder", path=str(path), layer=layer, d_sae=d_sae)


def sources(kind, weights, cache):
    """The same SAE from each kind of source."""
    release, sae_id, layer = RELEASES[kind]
    on_hub = hub_file(cache, "org/saes", "saes/first/cfg.json").parent
    for folder in (cache / "folder", on_hub):
        write_folder(folder, weights, kind, f"blocks.{layer}.hook_resid_post", apply_b_dec_to_input=False)
    write_release(cache, release, sae_id, weights)
    return {
        "folder": folder_of(cache / "folder", layer),
        "hub": HubSae(kind="hub", id="org/saes", path="saes/first", layer=layer, d_sae=64),
        "release": ReleaseSae(kind="release", release=release, id=sae_id, layer=layer, d_sae=64),
    }


def plain(weights, hidden, centred):
    """Activations in units of the residual stream, by the formula."""
    values = (hidden - centred * weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    fires = values > weights.get("threshold", torch.zeros(()))
    return values.relu() * fires * weights["W_dec"].norm(dim=-1)


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_an_sae_reads_and_ablates_alike_from_every_kind_of_source(kind, hub_cache, use):
    weights = tiny_sae(thresholds=kind == "jumprelu")
    expected = plain(weights, HIDDEN, centred=False)
    assert 0.2 < (expected > 0).float().mean() < 0.8
    written = weights["W_dec"][LATENTS] / weights["W_dec"][LATENTS].norm(dim=-1, keepdim=True)
    ablated = HIDDEN - expected[..., LATENTS] @ written
    assert (ablated - HIDDEN).abs().max() > 0.5
    real = torch.ones(3, 5, dtype=torch.bool)
    step = Step(torch.arange(3), real, real, torch.arange(1, 6).expand(3, 5))  # behind the first token, a sink
    sinks = Sinks(1, math.inf)
    sinks.edit(HIDDEN, step)
    for name, source in sources(kind, weights, hub_cache).items():
        use(source)
        subset, sae = loading.load_latent_subset("tiny", LATENTS), loading.load_sae("tiny")
        torch.testing.assert_close(
            subset.activations(HIDDEN), expected[..., LATENTS], msg=lambda m, n=name: f"{n}: {m}"
        )
        torch.testing.assert_close(sae.encode(HIDDEN), expected)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(64))
        edit = ZeroAblate(1, subset, subset.rows([LATENTS] * 3), sinks)
        torch.testing.assert_close(edit.edit(HIDDEN, step), ablated)
        torch.testing.assert_close(loading.load_directions("tiny", LATENTS), written)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
def test_norms_are_folded_as_saelens_folds_them(kind, centred, tmp_path, use):
    weights = tiny_sae(thresholds=kind == "jumprelu")
    if kind == "gated":
        weights |= {name: weights["b_enc"] + i for i, name in enumerate(("b_gate", "b_mag"))}
        weights["r_mag"] = 0.3 * weights.pop("b_enc")
    write_folder(tmp_path, weights, kind, apply_b_dec_to_input=centred)
    use(folder_of(tmp_path))
    theirs = SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)
    ours = loading.load_sae("tiny")
    torch.testing.assert_close(ours.W_dec, theirs.W_dec)
    torch.testing.assert_close(ours.encode(HIDDEN), theirs.encode(HIDDEN))
    torch.testing.assert_close(ours(HIDDEN), theirs(HIDDEN))
    subset = loading.load_latent_subset("tiny", LATENTS)
    torch.testing.assert_close(subset.activations(HIDDEN), theirs.encode(HIDDEN)[..., LATENTS])
    assert (subset.activations(HIDDEN) > 0).any() and (subset.activations(HIDDEN) == 0).any()


def test_the_shipped_sae_has_the_bits_of_its_file():
    with safe_open(ROOT / "data/train_sae/smollm2-135m/sae_weights.safetensors", framework="pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    rows = weights["W_dec"][[0, 5, 4607]]
    directions = loading.load_directions("smollm2-135m", [0, 5, 4607])
    assert torch.equal(directions, rows / rows.norm(dim=-1, keepdim=True))
    subset = loading.load_latent_subset("smollm2-135m", [0, 5, 4607])
    assert torch.equal(subset.decoder, rows) and torch.equal(subset.encoder, weights["W_enc"][:, [0, 5, 4607]])
    state = loading.load_sae("smollm2-135m").state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_dtypes_are_read_in_float32(dtype, tmp_path, use):
    weights = {name: tensor.to(dtype) for name, tensor in tiny_sae().items()}
    write_folder(tmp_path, weights)
    use(folder_of(tmp_path))
    sae, subset = loading.load_sae("tiny"), loading.load_latent_subset("tiny", LATENTS)
    assert {tensor.dtype for tensor in (*sae.parameters(), subset.encoder, subset.decoder)} == {torch.float32}
    expected = plain({name: tensor.float() for name, tensor in weights.items()}, HIDDEN, centred=True)
    torch.testing.assert_close(sae.encode(HIDDEN), expected)
    torch.testing.assert_close(subset.activations(HIDDEN), expected[..., LATENTS])


class LargestTensor(TorchDispatchMode):
    """Size in bytes of the largest tensor that an operation makes anew, views not counted."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        if isinstance(made, torch.Tensor) and not any(result.alias_info for result in function._schema.returns):
            self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
        return made


def anonymous_memory():
    """Bytes of memory that belong to this process alone and to no file; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = dict(line.split(":") for line in status.read_text().splitlines()) if status.exists() else {"RssAnon": "0"}
    return int(lines["RssAnon"].split()[0]) * 1024


@pytest.mark.parametrize(
    ("release", "sae_id", "layer"),
    [
        ("gemma-scope-27b-pt-res-canonical", "layer_22/width_131k/canonical", 22),
        ("goodfire-llama-3.1-8b-instruct", "layer_19", 19),
        ("qwen2.5-7b-instruct-andyrdt", "resid_post_layer_15_trainer_1", 15),
        ("gemma-scope-2-1b-it-res", "layer_17_width_262k_l0_medium", 17),
    ],
)
def test_latents_of_a_wide_sae_are_read_without_the_rest(release, sae_id, layer, hub_cache, use):
    d_sae, chosen = 131_072, [5, 70_000, 131_071]
    weights = tiny_sae(d_in=64, d_sae=d_sae)
    file = write_release(hub_cache, release, sae_id, weights)
    source = ReleaseSae(kind="release", release=release, id=sae_id, layer=layer, d_sae=d_sae)
    use(source)
    matrix = d_sae * 64 * 2
    assert file.stat().st_size > 2 * matrix
    formats.sae_config(source)  # imports SAELens and reads its list
    before = anonymous_memory()
    with LargestTensor() as largest:
        mapped = formats.map_weights(file, {})
        assert anonymous_memory() - before < matrix / 8
        directions, subset = loading.load_directions("tiny", chosen), loading.load_latent_subset("tiny", chosen)
    assert 0 < largest.nbytes < matrix / 1000
    torch.testing.assert_close(directions, subset.decoder)
    expected = plain(
        {name: w.float() for name, w in mapped.items()}, HIDDEN.repeat(1, 1, 2), release.startswith("qwen")
    )
    torch.testing.assert_close(subset.activations(HIDDEN.repeat(1, 1, 2)), expected[..., chosen])


def test_a_wide_sae_is_encoded_in_batches_of_tokens():
    read = []

    def encode(x):
        read.append(len(x))
        return x.relu()

    sae = SimpleNamespace(W_dec=torch.empty(131_072, 1), encode=encode)
    assert tokens_at_once(sae) == 512 and tokens_at_once(SimpleNamespace(W_dec=torch.empty(4608, 1))) == 4096
    residuals = torch.randn(1200, 4)
    activations = torch.cat([acts for _, acts in encoded(sae, residuals)])
    assert read == [512, 512, 176] and torch.equal(activations, residuals.relu())


def test_latents_that_do_not_exist_or_have_no_direction_are_refused(tmp_path, use):
    weights = tiny_sae()
    weights["W_dec"][3] = 0
    write_folder(tmp_path, weights)
    use(folder_of(tmp_path))
    with pytest.raises(ConfigError, match="has no direction for latent 3"):
        loading.load_directions("tiny", [1, 3])
    for load in (loading.load_directions, loading.load_latent_subset):
        for latent in (64, -1):
            with pytest.raises(ConfigError, match=f"has latents 0 to 63, and no latent {latent}"):
                load("tiny", [latent])


def test_an_sae_that_does_not_fit_is_refused_by_every_way_to_load_it(tmp_path, use):
    write_folder(tmp_path, tiny_sae(thresholds=False), "topk", k=4)
    use(folder_of(tmp_path))
    for load in (loading.load_sae, lambda name: loading.load_directions(name, [1]),
                 lambda name: loading.load_latent_subset(name, [1])):  # fmt: skip
        with pytest.raises(ConfigError, match=r"is topk \(whether a latent fires depends on all the others\): choo"):
            load("tiny")
