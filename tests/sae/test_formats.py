"""Published SAEs in the formats of their authors: what is read is what SAELens reads, and the rest is refused."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from releases import hub_file, offline_cache, tiny_sae, write_folder, write_release
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor, get_pretrained_saes_directory
from safetensors import safe_open

from esr.config.registry import FolderSae, HubSae, ReleaseSae, load_registry
from esr.config.schema import ConfigError
from esr.models.fetch import FetchError
from esr.sae import formats, loading
from esr.sae.facts import check_sae, hook_layer, sae_facts
from esr.sae.formats import map_weights, sae_config, sae_weights_path
from esr.sae.preflight import check_listed

PUBLISHED = [  # release, id, layer; architecture, and whether b_dec is subtracted from the input
    ("goodfire-llama-3.3-70b-instruct", "layer_50", 50, "standard", False),
    ("goodfire-llama-3.1-8b-instruct", "layer_19", 19, "standard", False),
    ("gemma-scope-27b-pt-res-canonical", "layer_22/width_131k/canonical", 22, "jumprelu", False),
    ("gemma-scope-9b-pt-res-canonical", "layer_26/width_16k/canonical", 26, "jumprelu", False),
    ("gemma-scope-9b-it-res-canonical", "layer_31/width_16k/canonical", 31, "jumprelu", False),
    ("gemma-scope-2b-pt-res-canonical", "layer_16/width_16k/canonical", 16, "jumprelu", False),
    ("gemma-scope-2-270m-it-res", "layer_12_width_16k_l0_medium", 12, "jumprelu", False),
    ("gemma-scope-2-1b-it-res", "layer_17_width_16k_l0_medium", 17, "jumprelu", False),
    ("qwen2.5-7b-instruct-andyrdt", "resid_post_layer_15_trainer_1", 15, "jumprelu", True),
    ("gemma-2-9b-res-matryoshka-dc", "blocks.20.hook_resid_post", 20, "jumprelu", True),
    ("deepseek-r1-distill-llama-8b-qresearch", "blocks.19.hook_resid_post", 19, "standard", False),
    ("llama_scope_lxr_8x", "l15r_8x", 15, "jumprelu", False),
]
HIDDEN = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESR_DEVICE", "cpu")
    return offline_cache(tmp_path, monkeypatch)


def release_of(release, sae_id, layer, d_sae=64):
    return ReleaseSae(kind="release", release=release, id=sae_id, layer=layer, d_sae=d_sae)


def folder_of(path, layer=1, d_sae=64):
    return FolderSae(kind="folder", path=str(path), layer=layer, d_sae=d_sae)


def load_by_saelens(release, sae_id, monkeypatch):
    """The SAE through SAELens' converter of this release, told the sizes that it otherwise takes from its list."""

    def shapes(repository, name):
        with safe_open(formats.hf_hub_download(repository, name), framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)  # asks the network
    sizes = {"d_in": 32, "d_sae": 64}
    monkeypatch.setattr(get_pretrained_saes_directory()[release], "config_overrides", sizes)
    return SAE.from_pretrained(release, sae_id, fold_W_dec_norm=True)


def plain(release, sae_id, weights, centred, hidden):
    """Activations in units of the residual stream, by the formula, with each format's particulars."""
    scale, weights = 1.0, dict(weights)
    if release.startswith("goodfire"):
        weights = {name: tensor.bfloat16().float() for name, tensor in weights.items() if name != "threshold"}
    elif release.startswith("deepseek"):
        del weights["threshold"]
    elif release.startswith("qwen"):
        weights["threshold"] = weights["threshold"][:1]
    elif release.startswith("llama_scope"):
        scale, weights["threshold"] = get_norm_scaling_factor(release, sae_id), torch.tensor(0.3 * 32**0.5 / 2.0)
    values = (scale * hidden - centred * weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    fires = values > weights.get("threshold", torch.zeros(()))
    return values.relu() * fires * weights["W_dec"].norm(dim=-1) / scale


@pytest.mark.parametrize(("release", "sae_id", "layer", "architecture", "centred"), PUBLISHED)
def test_a_release_reads_as_by_saelens_and_by_the_formula(
    release, sae_id, layer, architecture, centred, hub_cache, monkeypatch
):
    weights = tiny_sae()
    write_release(hub_cache, release, sae_id, weights)
    source = release_of(release, sae_id, layer)
    facts = check_sae(source, d_model=32)
    assert (facts.architecture, facts.layer, facts.d_in, facts.d_sae) == (architecture, layer, 32, 64)
    assert facts.dtype == (torch.bfloat16 if release.startswith("goodfire") else torch.float32)
    monkeypatch.setattr(loading, "model_entry", lambda _id: SimpleNamespace(sae=source))
    ours, subset = loading.load_sae("tiny"), loading.load_latent_subset("tiny", [5, 1, 63])
    theirs = load_by_saelens(release, sae_id, monkeypatch)
    read = ours.encode(HIDDEN)
    assert 0.1 < (read > 0).float().mean() < 0.9
    torch.testing.assert_close(read, plain(release, sae_id, weights, centred, HIDDEN), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read, theirs.encode(HIDDEN), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(HIDDEN), theirs(HIDDEN), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(subset.activations(HIDDEN), read[:, [5, 1, 63]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(subset.decoder, theirs.W_dec[[5, 1, 63]])
    torch.testing.assert_close(loading.load_directions("tiny", [5, 1, 63]), theirs.W_dec[[5, 1, 63]])


@pytest.mark.parametrize("published", [row for row in PUBLISHED if row[0].startswith(("goodfire", "gemma-scope-"))])
def test_facts_are_known_before_the_weights_are_downloaded(published, hub_cache, monkeypatch):
    release, sae_id, layer, architecture, _ = published
    if release.startswith("gemma-scope-2-"):  # SAELens reads the shapes from the hub, and the configuration
        write_release(hub_cache, release, sae_id, tiny_sae()).unlink()
        monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [32, 64], "w_dec": [64, 32]})
    facts = sae_facts(release_of(release, sae_id, layer))
    assert (facts.architecture, facts.layer, facts.dtype) == (architecture, layer, None)
    wide = {"goodfire": 65_536, "gemma-scope-2-": 64, "gemma-scope-27b": 131_072}
    assert facts.d_sae == next((n for name, n in wide.items() if release.startswith(name)), 16_384)
    with pytest.raises(FetchError, match=r"could not be downloaded .* check the name, log in if it is gated"):
        sae_weights_path(release_of(release, sae_id, layer))


def test_a_release_in_the_cache_is_looked_up_once(hub_cache, monkeypatch):
    release, sae_id, layer = PUBLISHED[8][:3]
    write_release(hub_cache, release, sae_id, tiny_sae())
    looked_up = []
    found = formats.hf_hub_download
    monkeypatch.setattr(formats, "hf_hub_download", lambda *a, **k: looked_up.append(a) or found(*a, **k))
    source = release_of(release, sae_id, layer)
    monkeypatch.setattr(loading, "model_entry", lambda _id: SimpleNamespace(sae=source))
    for latent in range(4):
        loading.load_directions("tiny", [latent])
    assert looked_up == [("andyrdt/saes-qwen2.5-7b-instruct", "resid_post_layer_15/trainer_1/ae.pt")]


def test_a_revision_of_a_hub_repository_is_the_one_that_is_read(hub_cache):
    weights = tiny_sae()
    main = hub_file(hub_cache, "org/saes", "cfg.json").parent
    write_folder(main, weights)
    commit = "f" * 40
    write_folder(main.parent / commit, weights | {"b_dec": weights["b_dec"] + 1})
    sources = [HubSae(kind="hub", id="org/saes", path=".", layer=1, d_sae=64, revision=r) for r in ("main", commit)]
    first, second = (map_weights(sae_weights_path(s), sae_config(s))["b_dec"] for s in sources)
    torch.testing.assert_close(second, first + 1)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_of_any_order_and_size_are_read_from_npz(write, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in tiny_sae().items()}
    arrays["W_enc"], arrays["threshold"] = np.asfortranarray(arrays["W_enc"]), np.float16(0.5)
    write(tmp_path / "params.npz", **arrays)
    read = map_weights(tmp_path / "params.npz", {})
    assert all(np.array_equal(read[name].numpy(), array) for name, array in arrays.items() if name != "threshold")
    assert read["threshold"].shape == (64,) and (read["threshold"] == 0.5).all()


def test_a_configuration_of_an_old_saelens_is_read(tmp_path):
    write_folder(tmp_path, tiny_sae(thresholds=False))
    old = '{"d_in": 32, "d_sae": 64, "hook_point": "blocks.2.hook_resid_pre", "normalize_activations": false}'
    (tmp_path / "cfg.json").write_text(old)
    facts = check_sae(folder_of(tmp_path))
    assert (facts.architecture, facts.layer, facts.normalize) == ("standard", 1, "none")
    assert sae_config(folder_of(tmp_path))["apply_b_dec_to_input"] is True


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.12.hook_resid_post", 12), ("blocks.12.hook_resid_pre", 11), ("model.layers.17", 17),
        ("model.layers.17.output", 17), ("model.language_model.layers.3", 3), ("blocks.0.hook_resid_pre", None),
        ("blocks.3.hook_mlp_out", None), ("blocks.3.attn.hook_z", None), ("model.layers.3.mlp", None),
        ("hook_embed", None),
    ],
)  # fmt: skip
def test_hook_names_of_both_libraries_say_the_layer(hook, layer):
    assert hook_layer(hook) == layer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topk"}, r"is topk \(whether a latent fires depends on all the others\): choose an SAE of"),
        ({"architecture": "batchtopk"}, "it was saved for training; save_inference_model writes it as jumprelu"),
        ({"architecture": "skip_transcoder"}, r"is skip_transcoder \(it writes elsewhere than it reads"),
        ({"architecture": "resnet"}, r"is resnet \(it is unknown here"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations layer_norm; only 'none' is supported: cho"),
        ({"normalize_activations": "expected_average_only_in"}, "fold its factor into the weights"),
        ({"hook": "blocks.1.hook_mlp_out"}, "reads blocks.1.hook_mlp_out; only the residual stream after a layer"),
        ({"hook": "blocks.2.hook_resid_post"}, "has layer 2, but sae.layer in data/models.yaml is 1: write layer: 2"),
        ({"d_sae": 128}, r"decoder of shape \(64, 32\), but its configuration states d_sae 128"),
        ({"d_in": 16}, r"states d_sae 64 and d_in 16: take configuration and weights \(cfg.json"),
    ],
)
def test_an_sae_that_cannot_be_used_is_refused_in_one_sentence(changes, message, tmp_path):
    write_folder(tmp_path, tiny_sae(), **changes)
    with pytest.raises(ConfigError, match=message) as error:
        check_sae(folder_of(tmp_path))
    assert str(error.value).startswith(f"The SAE in the folder {tmp_path}") and str(error.value).count(". ") == 0


def test_an_sae_of_another_model_or_size_is_refused(tmp_path):
    write_folder(tmp_path, tiny_sae())
    assert check_sae(folder_of(tmp_path), d_model=32).d_in == 32
    with pytest.raises(ConfigError, match="residuals of width 32, and the model's have 48: choose an SAE that was"):
        check_sae(folder_of(tmp_path), d_model=48)
    with pytest.raises(ConfigError, match="has d_sae 64, but sae.d_sae in data/models.yaml is 128: write d_sae: 64"):
        check_sae(folder_of(tmp_path, d_sae=128))


@pytest.mark.parametrize(
    ("release", "sae_id", "message"),
    [
        ("gemma-scope-2b-pt-res-cannonical", "x", "not in the list of sae-lens .* gemma-scope-2b-pt-res-canonical"),
        ("gemma-scope-2b-pt-res-canonical", "layer_16/width_16k", r"no SAE .* \(it has layer_16/width_16k/canonical"),
        ("gemma-scope-2b-pt-mlp-canonical", "layer_16/width_16k/canonical", "reads blocks.16.hook_mlp_out"),
        ("qwen-scope-3-8b-base-w64k-l50", "layer0", "in the format qwen_scope, which is not read here: allowed are"),
    ],
)
def test_a_release_that_cannot_be_used_is_refused_before_a_download(release, sae_id, message, hub_cache):
    with pytest.raises(ConfigError, match=message):
        check_sae(release_of(release, sae_id, 16))


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no cfg.json: name a folder that SAELens' save_model wrote"):
        check_sae(folder_of(tmp_path / "nothing"))
    write_folder(tmp_path, tiny_sae())
    whole = (tmp_path / "sae_weights.safetensors").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for content in (whole[:-100], whole[:50], pointer, b""):
        (tmp_path / "sae_weights.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match="it is damaged or a Git LFS pointer; delete it and fetch it again"):
            check_sae(folder_of(tmp_path))
    for name in ("params.npz", "ae.pt"):
        for content in (pointer, b""):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ConfigError, match="damaged or a Git LFS pointer"):
                map_weights(tmp_path / name, {})
    (tmp_path / "cfg.json").write_bytes(pointer)
    with pytest.raises(ConfigError, match="is no configuration of an SAE"):
        check_sae(folder_of(tmp_path))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "ae.pt")
    with pytest.raises(ConfigError, match="has no W_enc but weight: save it again with SAELens"):
        map_weights(tmp_path / "ae.pt", {})


def test_a_truncated_release_is_refused(hub_cache):
    for release, sae_id, layer, *_ in PUBLISHED:
        file = write_release(hub_cache, release, sae_id, tiny_sae())
        file.write_bytes(file.read_bytes()[:-200])
        formats._release_config.cache_clear()
        with pytest.raises(ConfigError, match="it is damaged or a Git LFS pointer"):
            check_sae(release_of(release, sae_id, layer))


ENTRIES = {name: entry for name, entry in load_registry().items() if entry.sae and entry.sae.kind == "release"}
WIDTHS = {"16k": 16_384, "65k": 65_536, "131k": 131_072, "262k": 262_144}


def test_the_published_models_have_entries():
    published = {"llama-33-70b", "llama-31-8b", "gemma-2-27b", "gemma-2-9b", "gemma-2-2b"}
    assert published | {"gemma-3-270m", "gemma-3-1b", "qwen25-7b"} <= set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_says_what_the_list_of_saelens_says(name):
    entry = ENTRIES[name]
    listed = get_pretrained_saes_directory()[entry.sae.release]
    path = listed.saes_map[entry.sae.id]
    layer = re.search(r"(?:layer_|l)(\d+)", path)
    assert int(layer[1]) == entry.sae.layer < entry.n_layers
    if width := re.search(r"width_(\d+k)", path):
        assert WIDTHS[width[1]] == entry.sae.d_sae
    if entry.labels.kind == "neuronpedia":
        check_listed(f"{entry.labels.model}/{entry.labels.sae}", name, entry.sae)
        assert f"{entry.labels.model}/{entry.labels.sae}" == listed.neuronpedia_id[entry.sae.id]
    else:
        assert listed.neuronpedia_id[entry.sae.id] is None
    assert listed.conversion_func in formats.RELEASES
    (source,) = entry.source
    assert source.kind == "hub" and source.revision == "main"
    base = listed.model.rpartition("/")[2].removesuffix("-it")  # Gemma Scope of the pretrained model, on the tuned one
    assert source.id.rpartition("/")[2].startswith(base)
    if listed.conversion_func in ("goodfire", "gemma_2"):  # stated by SAELens without the hub
        facts = check_sae(entry.sae)
        assert (facts.layer, facts.d_sae) == (entry.sae.layer, entry.sae.d_sae)
