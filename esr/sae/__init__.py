"""Sparse autoencoders: the corpus, training, loading, quality, contexts, and what latents mean.

Not here: steering with latents.
"""
