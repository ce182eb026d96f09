"""The vLLM backend: a process in vLLM's own environment, its hooks on the residual stream, and the client here.

`server` and `hooks` run in that environment, with Python's standard library, torch, and the parts of `esr.engine` that
say what an edit is.
"""
