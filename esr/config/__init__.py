"""params.yaml and data/models.yaml, typed and checked before heavy work: parameters, registry, model sources.

Not here: code that loads a model or reads data.
"""
