"""A model's files in an S3 bucket: up from where it was compiled or pulled, down to where it is served.

Credentials, region and endpoint come from the AWS_* variables of the environment. The manifest goes up last
and comes down first: a set without one is not whole.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mezzotint.errors import ModelInvalid, ModelNotFound, OutputUnwritable, SettingInvalid
from mezzotint.models.bucket import S3_SCHEME, bucket_error_text, open_bucket
from mezzotint.models.catalogue import CATALOGUE
from mezzotint.models.locations import models_home
from mezzotint.models.manifest import MANIFEST_NAME, check_manifest, read_manifest

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["download", "is_remote", "pull_artefact", "upload"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_remote(place: str) -> bool:
    return place.startswith(S3_SCHEME)


def upload(folder: Path, url: str) -> None:
    """Every file of `folder`, which has its manifest.

    Raises:
        SettingInvalid: no bucket, or the [serve] extra is missing. OutputUnwritable: the bucket does not take
        it.
    """
    store = _open(url)
    names = [*(read_manifest(folder) or {}), MANIFEST_NAME]
    with _failing_as(OutputUnwritable, f"{url} cannot be written"):
        for name in names:
            # In parts where it is long: never whole in memory.
            store.put(name, folder / name)


def download(url: str, folder: Path) -> Path:
    """The set at `url` into `folder`, which is there afterwards whole and checked, or not at all.

    Raises:
        SettingInvalid: no bucket, or the [serve] extra is missing.
        ModelNotFound: there is no set.
        ModelInvalid: what came is not what its manifest lists.
        OutputUnwritable: something else lies at `folder`, which the set would replace.
    """
    store = _open(url)
    if folder.exists() and not _is_replaceable(folder):
        raise OutputUnwritable(f"{folder} is there and is no pulled set; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        with _failing_as(ModelNotFound, f"{url} cannot be read"):
            (partial / MANIFEST_NAME).write_bytes(bytes(store.get(MANIFEST_NAME).bytes()))
            if _is_the_same(folder, partial):
                return folder
            for name in read_manifest(partial) or {}:
                _fetch(store, name, partial / _checked(name))
        check_manifest(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_replaceable(folder: Path) -> bool:
    """Whether there is nothing in it but a set."""
    try:
        return read_manifest(folder) is not None or (folder.is_dir() and not any(folder.iterdir()))
    except ModelInvalid:
        return False


def _is_the_same(folder: Path, other: Path) -> bool:
    """Whether `folder` is whole already, by the manifest that lies in `other`."""
    try:
        if (folder / MANIFEST_NAME).read_bytes() != (other / MANIFEST_NAME).read_bytes():
            return False
        check_manifest(folder)
    except (ModelInvalid, OSError):
        return False
    return True


def pull_artefact(url: str) -> Path:
    """The set at `url`, beside the pulled models, under the last part of its name.

    Raises:
        SettingInvalid: the URL has no such part, or it is the name of a model.
        ModelNotFound, ModelInvalid: as `download`.
    """
    name = url.removeprefix(S3_SCHEME).strip("/").rpartition("/")[2]
    if not NAME.fullmatch(name) or name in CATALOGUE or "/" not in url.removeprefix(S3_SCHEME).strip("/"):
        raise SettingInvalid(
            f"{url!r} ends in no name for a folder of graphs, such as s3://bucket/sdxl-inf2", param="name"
        )
    return download(url, models_home() / name)


def _fetch(store: S3Store, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for chunk in store.get(name).stream():
            file.write(bytes(chunk))


def _checked(name: str) -> str:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ModelInvalid(f"the manifest lists {json.dumps(name)}, which is outside its folder")
    return name


def _open(url: str) -> S3Store:
    if find_spec("obstore") is None:
        raise SettingInvalid("s3:// needs the [serve] extra: pip install 'mezzotint[serve]'", param="output")
    try:
        return open_bucket(url)
    except ValueError:
        raise SettingInvalid(f"an S3 place is s3://bucket/prefix; not {url!r}", param="output") from None


@contextmanager
def _failing_as(kind: type[OutputUnwritable] | type[ModelNotFound], what: str) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        raise kind(f"{what}: {bucket_error_text(error)}") from None
