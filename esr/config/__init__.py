"""params.yaml and data/models.yaml: typed, checked before heavy work, one sentence for each mistake.

Here: sections of parameters, registry entries, model sources, a stage's parameters. Not here: anything that loads
a model or reads data.
"""
