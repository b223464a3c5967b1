"""Keeps secrets out of what is printed and written: those that were seen, and whatever looks like one."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

__all__ = ["Redaction"]

HIDDEN = "[hidden]"
# Shorter ones would hide half of any text.
MIN_CHARACTERS = 6
LOOKS_SECRET = (
    re.compile(r"mk-[\w-]+-[\w-]{16,}"),
    re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]+"),
    re.compile(r'(?i)(?<="SecretString": ")(?:[^"\\]|\\.)*'),
    re.compile(
        r'(?i)(?:(?<=password)|(?<=secret_access_key)|(?<=session_token)|(?<=auth_token))["\']?\s*[=:]\s*\S+'
    ),
)


class Redaction:
    def __init__(self) -> None:
        self._seen: set[str] = set()

    def hide(self, secret: str) -> None:
        """From now on, this text is not shown, nor as base64 nor quoted for a URL."""
        if len(secret) >= MIN_CHARACTERS:
            encoded = base64.b64encode(secret.encode()).decode()
            self._seen |= {secret, encoded, quote(secret, safe="")}

    def __call__(self, text: str) -> str:
        for secret in sorted(self._seen, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        for pattern in LOOKS_SECRET:
            text = pattern.sub(HIDDEN, text)
        return text
