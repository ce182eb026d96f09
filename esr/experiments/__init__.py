"""One module per experiment: its trials, conditions and outcomes."""
