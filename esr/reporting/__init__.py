"""Numbers, claims, figures, the response viewer and the paper.

Reads the output of stages; imports no torch and no experiment.
"""
