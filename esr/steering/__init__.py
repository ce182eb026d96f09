"""From planned trials to responses, and the activations of latents on them. One path for all conditions.

Not here: which trials an experiment plans.
"""
