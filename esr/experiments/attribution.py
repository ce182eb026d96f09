"""Attribution patching: what zero-ablating every single latent would do to propensity, in one backward pass a text.

The first-order estimate of the effect of latent j is the gradient of the mean log-odds with respect to the cached
residual stream, times -f_j(h) W_dec[j], summed over tokens but sinks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from esr.engine.interventions import LatentSubset
from esr.experiments.propensity import Cached, UpperLayers


def attribution(upper: UpperLayers, cached: Cached, subset: LatentSubset) -> Float[Tensor, " latents"]:
    """Estimated change of the text's mean log-odds by zero-ablating each latent of `subset` alone."""
    hidden = cached.hidden.detach().clone().requires_grad_()
    with torch.enable_grad():
        mean = upper.log_odds(hidden[None], cached.places).mean()
        (gradient,) = torch.autograd.grad(mean, hidden)
    activity = subset.activations(cached.hidden) * ~cached.sinks[:, None]
    return -(activity * (gradient.float() @ subset.decoder.T)).sum(0)
