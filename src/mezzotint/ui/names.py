"""What the service's names look like: what a browser sends is checked before it is part of an address."""

from __future__ import annotations

import re

__all__ = ["FILE_NAME", "JOB_ID"]

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.(?:png|jpeg|webp)")
