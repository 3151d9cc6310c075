"""Removes credentials from everything that is written or shown: settings, messages, reports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Names of settings that hold a credential.
_SECRET_KEY = re.compile(r"(^|[_-])(token|password|passwd|secret|api_?key|access_?key|credentials?)$", re.IGNORECASE)
#: The user part of a URL, and the tokens of services by their prefixes.
_SECRET_TEXT = (
    (re.compile(r"(?<=:/)(/?)[^/\s@\"']+@"), r"\1***@"),  # a path holds one slash
    (re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|AKIA)[A-Za-z0-9_-]{12,}"), r"\1***"),
)


def redacted(text: str) -> str:
    """`text` with credentials in it replaced by stars.

    >>> redacted("https://me:pass@example.org/data and hf_abcdefghijklmnop")
    'https://***@example.org/data and hf_***'
    """
    for pattern, shown in _SECRET_TEXT:
        text = pattern.sub(shown, text)
    return text


def without_credentials(settings: Any) -> Any:
    """Plain settings, at any depth, without the keys that hold a credential and with credentials in texts redacted."""
    if isinstance(settings, Mapping):
        return {key: without_credentials(value) for key, value in settings.items() if not _SECRET_KEY.search(str(key))}
    if isinstance(settings, list | tuple):
        return [without_credentials(value) for value in settings]
    return redacted(settings) if isinstance(settings, str) else settings
