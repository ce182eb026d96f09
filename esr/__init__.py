"""Endogenous steering resistance (ESR): steer a language model off-topic, see whether it notices and comes back."""
