"""Numbers, claims, figures, the response viewer and the paper.

Imports no torch, no experiment: reads what stages wrote.
"""
