"""Where the folder `deploy` of a checkout is. The wheel has none: what is run is read first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mezzotint.errors import SettingInvalid

__all__ = ["digest_of", "find_source"]

PARTS = ("terraform/infra", "terraform/addons", "kubernetes/overlays")


def find_source(given: Path | None) -> Path:
    """The folder `deploy`: of `given`, or else of the checkout that this package is in.

    Raises:
        SettingInvalid: it is not there.
    """
    checkout = given if given is not None else Path(__file__).parents[3]
    folder = checkout / "deploy"
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise SettingInvalid(
            f"no {', '.join(missing)} in {folder}; deploying needs a checkout of Mezzotint: --source PATH",
            param="--source",
        )
    return folder.resolve()


def digest_of(files: Iterable[Path], *texts: str) -> str:
    """One hash of what the files hold and are called, and of the texts."""
    sums = hashlib.sha256()
    for path in sorted(files):
        sums.update(f"{path.parent.name}/{path.name}\0".encode())
        sums.update(path.read_bytes())
    for text in texts:
        sums.update(b"\0" + text.encode())
    return sums.hexdigest()
