"""What is kept on disk and under which name: typed rows, atomic files, digests and the seeds that follow from them.

Not here: what rows mean.
"""
