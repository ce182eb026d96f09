"""The error of fetching."""

from __future__ import annotations


class FetchError(RuntimeError):
    """A model could not be fetched; the message says in one sentence what to do."""
