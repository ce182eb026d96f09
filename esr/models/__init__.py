"""Models on disk and in memory: fetching, GGUF, loading, chat template, merging adapters, provenance.

Not here: edits of the residual stream, SAEs.
"""
