"""Metrics, intervals, effects, verdict rules, simulation and power.

Imports no torch.
"""
