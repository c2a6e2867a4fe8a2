"""Recognise values that look like secrets, so that a spec cannot carry one into a repository, a log or a run folder."""

from __future__ import annotations

import re

from llama_scale.errors import Problem
from llama_scale.spec.nodes import Node, Path, texts

_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a Hugging Face token", re.compile(r"\b(?:api_org|hf)_[A-Za-z0-9]{16,}")),
    ("an API key", re.compile(r"\bsk-[A-Za-z0-9_-]{16,}")),
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})")),
    ("a GitLab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    ("a Google API key", re.compile(r"\bAIza[0-9A-Za-z_-]{35}")),
    ("a Slack token", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("a password in a URL", re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s:@]+@")),
)
_KEY_NAME = re.compile(
    r"(?:^|[_.-])(?:token|password|passwd|secret|credentials?|private[_-]?key|(?:api|access|secret|auth)[_-]?key)$",
    re.IGNORECASE,
)
_HEX_KEY = re.compile(r"[0-9a-f]{32,}", re.IGNORECASE)
_KEY_LIKE = re.compile(r"key|token|secret|password|wandb", re.IGNORECASE)


def secret_kind(value: str) -> str | None:
    """Name the kind of secret a text looks like; None if it looks like none."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(value)), None)


def looks_secret(value: str) -> bool:
    """Tell whether a text must not be shown."""
    return secret_kind(value) is not None


def find_secrets(root: Node) -> list[Problem]:
    """Return a problem for each value of a document that looks like a secret; the value itself is never shown."""
    return [_problem(path, kind) for path, text in texts(root) if (kind := secret_kind(text) or _by_key(path, text))]


def _by_key(path: Path, value: str) -> str | None:
    """Judge by the key's name: any text under ``WANDB_API_KEY``, a long hex number under a key-like name."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if value and _KEY_NAME.search(key):
        return "a secret, going by its key"
    if _HEX_KEY.fullmatch(value) and _KEY_LIKE.search(key):
        return "a key"
    return None


def _problem(path: Path, kind: str) -> Problem:
    return Problem(
        path=path,
        message=f"the value looks like {kind}, and a spec is copied into run folders and logs",
        hint="remove it (and replace the secret: it may have been read); workers inherit the environment that "
        "`llama-scale launch` runs in, so export the variable there",
        code="secret",
    )
