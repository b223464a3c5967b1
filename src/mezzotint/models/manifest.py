"""A model's files, held to their sha256: nothing of a changed, missing or added file is ever deserialised.

`manifest.json` lies beside the files it lists: {"files": {"unet/config.json": {"sha256": …, "size": …}}}.
Knows files and hashes, not what a model is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mezzotint.core import ADDED
from mezzotint.errors import ModelInvalid, os_error_text

__all__ = [
    "MANIFEST_NAME",
    "check_file_kinds",
    "check_manifest",
    "files_hash",
    "fingerprint",
    "read_manifest",
    "write_manifest",
]

MANIFEST_NAME = "manifest.json"
# What runs code when it is read, or is code. A model folder has no use for them.
REFUSED_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".dll", ".joblib", ".npy", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".so"}
)
HASH_THREADS = 4
CHUNK_BYTES = 4 * 2**20
# Of a file that nobody listed: what is looked at of it, and of which files.
READ_SUFFIXES = frozenset({".json", ".safetensors", ".txt"})
SAMPLES = 256
SAMPLE_BYTES = 4096

Files = Mapping[str, Mapping[str, Any]]


def write_manifest(folder: Path) -> Path:
    """Hash every file of `folder` into its manifest, replacing one that is there.

    Raises:
        ModelInvalid: the folder holds files of a kind that is not read.
        OSError: it cannot be read or written.
    """
    check_file_kinds(folder)
    names = _list_files(folder)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        entries = pool.map(lambda name: _describe(folder / name), names)
        files = dict(zip(names, entries, strict=True))
    path = folder / MANIFEST_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_manifest(folder: Path) -> Files | None:
    """The manifest's entries by path, or `None` where there is none.

    Raises:
        ModelInvalid: it is not a manifest.
    """
    path = folder / MANIFEST_NAME
    try:
        if not path.is_file():
            return None
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if all(isinstance(entry["sha256"], str) and int(entry["size"]) >= 0 for entry in files.values()):
            return dict(files)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        pass
    raise ModelInvalid(f"{folder.name}/{MANIFEST_NAME} is not a manifest of files with sha256 and size")


def files_hash(path: Path, suffixes: Collection[str] | None = None) -> str:
    """One sha256 for a file, or for names and contents of a folder's files: all, or those with `suffixes`.

    Raises:
        OSError: a file cannot be read.
    """
    if path.is_file():
        return _sha256(path)
    digest = hashlib.sha256()
    names = [name for name in _list_files(path) if suffixes is None or Path(name).suffix in suffixes]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        for name, each in zip(names, pool.map(lambda name: _sha256(path / name), names), strict=True):
            digest.update(f"{name}\0{each}\n".encode())
    return digest.hexdigest()


def check_manifest(folder: Path) -> None:
    """Compare every file of `folder` with its manifest.

    Raises:
        ModelInvalid: naming the first file that is missing, extra, changed or unreadable, or that there is no
            manifest.
    """
    files = read_manifest(folder)
    if files is None:
        raise ModelInvalid(
            f"{folder.name} has no {MANIFEST_NAME}, so its files cannot be trusted; pull it again"
        )
    present = set(_list_files(folder))
    for name in sorted(files.keys() - present):
        raise ModelInvalid(f"{folder.name} lacks {name}, which its manifest lists")
    for name in sorted(present - files.keys()):
        raise ModelInvalid(f"{folder.name} holds {name}, which its manifest does not list")
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        sound = pool.map(lambda name: _matches(folder / name, files[name]), files)
        for name, is_sound in zip(files, sound, strict=True):
            if not is_sound:
                raise ModelInvalid(f"{folder.name}: {name} is not the file that its manifest lists")


def check_file_kinds(folder: Path) -> None:
    """Refuse a folder with files that could run code.

    Raises:
        ModelInvalid: naming the first one.
    """
    for name in _list_files(folder):
        if Path(name).suffix.lower() in REFUSED_SUFFIXES:
            raise ModelInvalid(f"{folder.name} holds {name}; only safetensors weights are read, remove it")


def fingerprint(path: Path) -> str:
    """A short hash that tells a model's files, or its only one, from others: over their names, sizes and
    `SAMPLES` pieces of each one's content, at even distances, the first and the last among them.

    Two fine-tunes of one model have the same names, sizes and safetensors headers, and differ in nearly every
    weight: a few pieces tell them apart, and reading gigabytes whole is spared. Times of change would differ
    between machines that hold the same files. It proves nothing: what differs in a few bytes alone may escape
    it, and does not escape a manifest.

    Raises:
        ModelInvalid: a file cannot be read.
    """
    digest = hashlib.sha256()
    # Of a single file the name is left out: renamed, it is still the same model.
    files = {"": path} if path.is_file() else {name: path / name for name in _list_files(path)}
    for name, file in files.items():
        # What lies beside it to be named changes no picture that does not.
        if name.partition("/")[0] in (*ADDED, "image_encoder"):
            continue
        if file.suffix.lower() in READ_SUFFIXES and file.is_file():
            digest.update(f"{name}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
            digest.update(_samples(file))
    return digest.hexdigest()[:16]


def _samples(path: Path) -> bytes:
    last = max(0, path.stat().st_size - SAMPLE_BYTES)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(last * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.digest()


def _list_files(folder: Path) -> list[str]:
    """Every file below `folder` but the manifest, as sorted relative paths with forward slashes."""
    found = []
    for root, _, names in os.walk(folder, followlinks=True):
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in names]
    return sorted(name for name in found if name not in (MANIFEST_NAME, "manifest.partial"))


def _matches(path: Path, entry: Mapping[str, Any]) -> bool:
    # A truncated file of gigabytes need not be read to be refused; nor can a link to nowhere be.
    try:
        return bool(path.stat().st_size == entry["size"] and _sha256(path) == entry["sha256"])
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ModelInvalid:
    return ModelInvalid(f"{path.parent.name}/{path.name} cannot be read: {os_error_text(error)}")


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "size": path.stat().st_size}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
