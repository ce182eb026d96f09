"""Sparse autoencoders: corpus, training, loading, quality, contexts, labels and the choice of latents.

Not here: steering with latents.
"""
