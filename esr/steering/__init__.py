"""From planned trials to responses, and activations of latents on them. One path for all conditions.

Experiments decide which trials to plan.
"""
