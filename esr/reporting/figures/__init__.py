"""The paper's figures: each function maps numbers to a Figure; `save` writes it to paper/figures."""

from esr.reporting.figures.example import example, median_improvement
from esr.reporting.figures.mechanism import ablation, activations, controls, detectors
from esr.reporting.figures.quality import benchmark, judge_calibration, power_curves
from esr.reporting.figures.rates import (
    boost_sweep,
    esr_by_model,
    finetuning,
    first_attempt_scores,
    learning_curves,
    meta_prompts,
)
from esr.reporting.figures.setup import calibration, latent_density, relevance, sae_training
from esr.reporting.figures.style import save, use_style

__all__ = [
    "ablation", "activations", "benchmark", "boost_sweep", "calibration", "controls", "detectors", "esr_by_model",
    "example", "finetuning", "first_attempt_scores", "judge_calibration", "latent_density", "learning_curves",
    "median_improvement", "meta_prompts", "power_curves", "relevance", "sae_training", "save", "use_style",
]  # fmt: skip
