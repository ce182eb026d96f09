"""The playground: steer a model by hand, read both responses as they are written, and export what makes them again.

Not here: anything that the pipeline runs. No stage depends on this package.
"""
