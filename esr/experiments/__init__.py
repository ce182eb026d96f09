"""Experiments, one module each: trials, conditions and outcomes; `run` answers and judges their trials.

Not here: how a response is generated, judged or drawn, and the verdict rules that experiments share.
"""
