"""From responses on disk to attempts and scores: restart language, relevance, judges, annotations, agreement.

Knows no engine and never needs the model under test.
"""
