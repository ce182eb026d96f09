"""Storage: typed rows, atomic files, digests, and seeds derived from digests.

Not here: what rows mean.
"""
