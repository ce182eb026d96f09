"""Shards: several hosts share a stage, each running every n-th chunk of the same plan.

The plan and its chunks do not depend on the number of shards, so a chunk has one key whoever runs it, a killed shard
resumes, and a chunk that two shards ran is found once. Hosts without a common `ESR_CACHE` exchange finished chunks
through a store, any folder or object store that fsspec knows (`ESR_CHUNK_STORE`, as in s3://bucket/esr).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from esr.progress import say
from esr.storage.files import write_bytes

SHARD, WAIT, MERGE, STORE = "ESR_SHARD", "ESR_SHARD_WAIT", "ESR_MERGE", "ESR_CHUNK_STORE"  # environment variables
POLL_S = 5.0  # between looks for other shards' chunks


class ShardEnd(Exception):
    """This shard has run its chunks, and those of other shards are missing: the stage goes on when all are there."""


class StoreError(RuntimeError):
    """Two runs of one chunk gave different bytes, or a chunk is not what its plan says."""


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/5". Raises ValueError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"The shard is {text!r}: write its number and their count, from 1/5 to 5/5 for five.")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def current(cls) -> Shard | None:
        """That of the environment variable ESR_SHARD."""
        return cls.parse(os.environ[SHARD]) if os.environ.get(SHARD) else None

    def has(self, chunk: int) -> bool:
        """Whether this shard runs the chunk at this place of the plan; neighbours go to different shards."""
        return chunk % self.count == self.number - 1


def check_merge(what: str, missing: Sequence[int], n_chunks: int) -> None:
    """Raise ValueError in a merging run (ESR_MERGE, the number of shards) that lacks chunks, which it would compute."""
    count = int(os.environ.get(MERGE) or 0)
    if count and missing:
        shards = sorted({place % count + 1 for place in missing})
        names = ", ".join(f"--shard {number}/{count}" for number in shards)
        raise ValueError(
            f"{what}: {len(missing)} of {n_chunks} chunks are missing: run {names} again, or leave out --merge to "
            "compute them here. Chunks of another kind of processor, other versions or other parameters do not count."
        )


def wait_for_others(what: str, shard: Shard, paths: Sequence[Path], root: Path) -> None:
    """Return when all `paths` are there. Raises ShardEnd when some are missing after ESR_SHARD_WAIT seconds."""
    deadline = time.monotonic() + float(os.environ.get(WAIT) or 0)
    reported = False
    while missing := [path for path in paths if not is_there(path, root)]:
        if time.monotonic() >= deadline:
            raise ShardEnd(
                f"{what}: shard {shard.number}/{shard.count} is finished; {len(missing)} of {len(paths)} chunks are "
                "left to other shards. Run the stage again when they have finished."
            )
        if not reported:
            say(f"{what}: shard {shard.number}/{shard.count} waits for {len(missing)} chunks of other shards")
            reported = True
        time.sleep(POLL_S)


def is_there(path: Path, root: Path) -> bool:
    """Whether a chunk's file is below `root`, fetched from the store if it is there."""
    if path.exists():
        return True
    if not (store := _store()):
        return False
    files, folder = store
    try:
        content = files.cat_file(f"{folder}/{path.relative_to(root).as_posix()}")
    except FileNotFoundError:
        return False
    write_bytes(path, content)
    return True


def keep(path: Path, content: bytes, root: Path) -> None:
    """Write a finished chunk below `root`, atomically, and share it. Raises StoreError when the store's differs."""
    write_bytes(path, content)
    if not (store := _store()):
        return
    files, folder = store
    target = f"{folder}/{path.relative_to(root).as_posix()}"
    if files.exists(target):
        if files.cat_file(target) != content:
            raise StoreError(
                f"{target} has other content than {path}, from the same inputs: two hosts differ where their "
                "provenance does not. Delete both and find out which one is wrong."
            )
        return
    partial = f"{target}.{uuid4().hex}.partial"
    files.makedirs(target.rpartition("/")[0], exist_ok=True)
    files.pipe_file(partial, content)
    files.mv(partial, target)


def _store() -> tuple[Any, str] | None:
    return _open(os.environ[STORE]) if os.environ.get(STORE) else None


@lru_cache(maxsize=1)
def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    files, folder = url_to_fs(url, use_listings_cache=False)
    return files, folder.rstrip("/")
