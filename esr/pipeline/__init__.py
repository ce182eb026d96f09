"""Running a stage's notebook with its parameters, and the kernels it runs on.

Not here: anything that decides a result.
"""
