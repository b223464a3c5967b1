"""Fetching a model of the catalogue from the Hugging Face Hub. (`artefact_store` fetches from a bucket.)

Only the files that are needed, at the pinned commit, into a folder beside their final place; once all are
there and hashed, the folder is renamed. What is interrupted leaves nothing that looks like a model.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from mezzotint.errors import MezzotintError, ModelInvalid, ModelNotFound, OutputUnwritable
from mezzotint.models.catalogue import CATALOGUE, CatalogueEntry, Source
from mezzotint.models.locations import catalogue_path, check, find_model
from mezzotint.models.manifest import write_manifest

__all__ = ["Progress", "pull"]

Progress = Callable[[int, int], None]
"""Called now and then with the bytes that are here and the bytes there will be."""

PROGRESS_SECONDS = 0.5
SPARE_BYTES = 2**28
# What else goes wrong in a pull is put down to the network.
DISK_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model, or make sure that it is here and whole; returns its folder.

    Raises:
        ModelNotFound: the catalogue has no such model, or the Hub could not be reached.
        OutputUnwritable: the models' home cannot be written, or has too little room.
        ModelInvalid: what came is not what the catalogue promises.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        known = ", ".join(CATALOGUE)
        raise ModelNotFound(f"no model {name!r} to fetch; the catalogue has {known}")
    if entry.source is None:
        return find_model(name)
    if entry.base is not None:
        pull(entry.base, progress)
    target = catalogue_path(entry)
    with _failures_of(entry):
        if target.exists():
            try:
                return check(name).path
            except (ModelInvalid, ModelNotFound):
                pass  # Damaged or half-deleted: fetched anew below, and replaced only then.
        _fetch(entry.source, target, progress)
    return target


def _fetch(source: Source, target: Path, progress: Progress | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        total = _total_bytes(source)
        if shutil.disk_usage(folder).free < total + SPARE_BYTES:
            raise OutputUnwritable(
                f"{target.name} takes {total / 1e9:.1f} GB, and the disk has too little room"
            )
        with _reporting(folder, total, progress):
            _download(source, folder)
        # The Hub's client keeps its own notes in the folder; they are no part of the model.
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        if not any(folder.rglob("*.safetensors")):
            raise ModelInvalid(f"{source.repository} has no safetensors weights at the pinned revision")
        write_manifest(folder)
        if target.exists():
            target.rename(Path(scratch) / "replaced")
        folder.rename(target)


def _total_bytes(source: Source) -> int:
    # `snapshot_download` would tell by a dry run, but not in the Neuron image, whose client is an older one.
    from huggingface_hub import HfApi

    told = HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
    return sum(
        file.size or 0
        for file in told.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in source.files)
    )


def _download(source: Source, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    # Whoever asked is told of the progress, and draws it.
    disable_progress_bars()
    snapshot_download(
        source.repository, revision=source.revision, allow_patterns=list(source.files), local_dir=folder
    )


@contextmanager
def _reporting(folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Tell `progress` how much of `folder` is there, from a thread, until the block ends."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(PROGRESS_SECONDS):
            progress(min(_present_bytes(folder), total), total)

    thread = threading.Thread(target=report, name="mezzotint-pull", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress(total, total)


def _present_bytes(folder: Path) -> int:
    present = 0
    for path in folder.rglob("*"):
        try:
            present += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # Renamed between the two looks.
    return present


@contextmanager
def _failures_of(entry: CatalogueEntry) -> Iterator[None]:
    try:
        yield
    except MezzotintError:
        raise
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise OutputUnwritable(
                f"{entry.name} cannot be written to the models' home: {error.strerror}; "
                "MEZZOTINT_HOME names another place"
            ) from error
        raise _unreachable(entry, error) from error
    except Exception as error:
        raise _unreachable(entry, error) from error


def _unreachable(entry: CatalogueEntry, error: Exception) -> ModelNotFound:
    reason = next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__
    return ModelNotFound(f"{entry.name} could not be fetched from the Hugging Face Hub: {reason}")
