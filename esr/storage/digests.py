"""Stable digests of content, and the seeds that follow from them."""

from __future__ import annotations

import hashlib
import json
import random
from functools import lru_cache
from pathlib import Path


@lru_cache
def file_digest(path: Path) -> str:
    """16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest(*parts: object) -> str:
    """16 hex digits of SHA-256 over the JSON of `parts`: a stable name for what they describe."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seeded(*parts: object) -> random.Random:
    """A generator of random draws that follow from what `parts` describe."""
    return random.Random(digest(*parts))


def trial_seed(seed: int, latent: int, prompt_id: str, repeat: int) -> int:
    """Seed of one (latent, prompt, repeat), the same in every condition."""
    return int(digest(seed, latent, prompt_id, repeat)[:8], 16)
