"""One module an experiment: its trials, its conditions, its outcomes."""
