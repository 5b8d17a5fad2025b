"""What a page that opens from disk may do: the sources of its Content-Security-Policy, and text for its scripts."""

from __future__ import annotations

import base64
import hashlib


def inline_source(text: str) -> str:
    """The CSP source expression of an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def data_address(content: bytes, kind: str) -> str:
    """A file as a `data:` address; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
