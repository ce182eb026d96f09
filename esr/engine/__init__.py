"""Batched generation under interventions: the loop, its cache, attention, sampling, guard, activations, workers.

Knows neither SAE nor registry: it gets a model, rows and interventions.
"""
