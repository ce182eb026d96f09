"""Models on disk and in memory: fetching, GGUF, loading, chat template, merging adapters, provenance.

Not here: SAEs and edits of the residual stream.
"""
