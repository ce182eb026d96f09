"""Stable digests of content, and seeds derived from them."""

from __future__ import annotations

import ast
import hashlib
import json
import random
from functools import lru_cache
from pathlib import Path


@lru_cache
def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256; cached per path."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@lru_cache
def code_digest(*modules: Path) -> str:
    """16 hex digits over what the modules do: their syntax trees. Comments, docstrings and layout do not count."""
    trees = [ast.parse(module.read_text(encoding="utf-8")) for module in modules]
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = [part for part in node.body if not _is_docstring(part)]
    return digest([ast.dump(tree) for tree in trees])


def _is_docstring(node: ast.stmt) -> bool:
    """Text on a line of its own: a docstring, or the sentence below a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


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
