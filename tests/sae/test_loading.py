"""A latent subset reads what the whole SAE reads, where latents do not depend on each other."""

import pytest
import torch

from esr.sae import loading


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_a_latent_subset_reads_what_saelens_reads(kind, tmp_path, monkeypatch):
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig

    classes = {"standard": (StandardSAE, StandardSAEConfig), "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig)}
    sae_class, config_class = classes[kind]
    sae = sae_class(config_class(d_in=32, d_sae=64))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.3)
    sae.save_model(tmp_path)
    entry = loading.model_entry("smollm2-135m")
    folder = entry.sae.model_copy(update={"path": str(tmp_path)})
    monkeypatch.setattr(loading, "model_entry", lambda _id: entry.model_copy(update={"sae": folder}))
    hidden = torch.randn(3, 5, 32, generator=draw)
    expected = sae.encode(hidden)[..., [7, 3, 40]]
    assert (expected > 0).any() and (expected == 0).any()
    torch.testing.assert_close(loading.load_latent_subset("smollm2-135m", [7, 3, 40]).activations(hidden), expected)


def test_an_sae_whose_latents_depend_on_each_other_is_refused(monkeypatch):
    monkeypatch.setattr(loading, "_sae_weights", lambda _id: (None, {"architecture": "topk"}))
    with pytest.raises(ValueError, match="is topk with normalize_activations none"):
        loading.load_latent_subset("smollm2-135m", [1])
