"""What is counted and how sure it is: metrics, intervals, comparisons, verdict rules, simulation, power.

Imports no torch.
"""
