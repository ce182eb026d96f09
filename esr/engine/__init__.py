"""Batched generation under interventions: loop, cache, attention, sampling, guard, activations, workers.

Takes a model, rows and interventions; knows neither SAE nor registry.
"""
