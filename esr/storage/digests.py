"""Stable digests of content, and seeds derived from them."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path

SETTLED = 2_000_000_000  # nanoseconds; the coarsest time stamps of file systems
_digests: dict[tuple, str] = {}  # of unchanged files, in this process alone


def file_stamp(path: Path) -> tuple[int, ...]:
    """Size, times and place of a file: they differ after a change, except within the grain of the time stamps."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256.

    A file is not read again in this process while its stamp stays; one written in the last two seconds is always read,
    since it could change once more within the grain of its time stamps.
    """
    now, stamp = time.time_ns(), file_stamp(path)
    key = (str(path), *stamp)
    if key in _digests:
        return _digests[key]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    _, modified, changed, *_ = stamp
    if now - max(modified, changed) > SETTLED and file_stamp(path) == stamp:
        _digests[key] = found
    return found


def digest(*parts: object) -> str:
    """First 16 hex digits of the SHA-256 of `parts` as JSON: a stable name."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seeded(*parts: object) -> random.Random:
    """A random generator seeded by the digest of `parts`."""
    return random.Random(digest(*parts))


def trial_seed(seed: int, latent: int, prompt_id: str, repeat: int) -> int:
    """32-bit seed of one (latent, prompt, repeat), equal in all conditions."""
    return int(digest(seed, latent, prompt_id, repeat)[:8], 16)
