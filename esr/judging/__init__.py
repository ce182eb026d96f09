"""From responses on disk to attempts and scores: restart language, relevance, judges, annotations, agreement.

Not here: the engine and the model under test.
"""
