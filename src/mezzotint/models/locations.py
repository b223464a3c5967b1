"""Where models lie, and what is known of them without loading one.

The answers behind `mezzotint models list`, `show` and `check`. No torch here: these must answer at once.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mezzotint.core import ADDED, PIXELS_PER_LATENT, ModelLimits
from mezzotint.errors import ModelInvalid, ModelNotFound, SettingInvalid, os_error_text
from mezzotint.models.added import Added, find_added
from mezzotint.models.artefact import holds_graphs, read_artefact
from mezzotint.models.catalogue import CATALOGUE, CatalogueEntry, limits_of_size
from mezzotint.models.json_files import VOCABULARY, read_json, sampler_of
from mezzotint.models.manifest import MANIFEST_NAME, check_file_kinds, check_manifest, read_manifest
from mezzotint.samplers import SAMPLERS

__all__ = [
    "CheckReport",
    "ListedModel",
    "base_of",
    "catalogue_path",
    "check",
    "compiled_home",
    "data_home",
    "describe",
    "find_model",
    "limits_of",
    "list_models",
    "models_home",
    "verify",
]

SDXL_SAMPLE_SIZE = 128
MAX_SAMPLE_SIZE = 4096


@dataclass(frozen=True)
class ListedModel:
    """A line of `mezzotint models list`. `path` and `bytes` are `None` and 0 unless it is installed."""

    name: str
    title: str
    license: str
    repository: str | None
    revision: str | None
    installed: bool
    path: Path | None
    bytes: int


@dataclass(frozen=True)
class CheckReport:
    """A model whose files are what they should be. `verified` says whether a manifest vouches for them."""

    name: str
    path: Path
    files: int
    bytes: int
    verified: bool


def models_home() -> Path:
    """Where pulled models lie: `$MEZZOTINT_HOME/models`, by default below `~/.cache/mezzotint`.

    Raises:
        SettingInvalid: the setting names a user that is none, or this user has no home.
    """
    return _home() / "models"


def data_home() -> Path:
    """Where a server keeps what is its own, unless told otherwise: `$MEZZOTINT_HOME/data`.

    Raises:
        SettingInvalid: as `models_home`.
    """
    return _home() / "data"


def compiled_home() -> Path:
    """Where compiled graphs are kept for the next run: `$MEZZOTINT_HOME/compiled`.

    Raises:
        SettingInvalid: as `models_home`.
    """
    return _home() / "compiled"


def _home() -> Path:
    home = os.environ.get("MEZZOTINT_HOME") or "~/.cache/mezzotint"
    try:
        return Path(home).expanduser()
    except RuntimeError:
        raise SettingInvalid(
            f"MEZZOTINT_HOME takes a folder; {home!r} is below the home of a user that has none",
            param="MEZZOTINT_HOME",
        ) from None


def catalogue_path(entry: CatalogueEntry) -> Path:
    """Where `entry` lies, or would."""
    if entry.source is None:
        return Path(__file__).parent / entry.name
    return models_home() / entry.name


def find_model(name: str) -> Path:
    """The folder or single file of a model: a name of the catalogue, or a path.

    Raises:
        ModelNotFound: there is none; the message says what is accepted, or how to get it.
    """
    entry = CATALOGUE.get(name)
    if entry is not None:
        path = catalogue_path(entry)
        if _is_installed(entry):
            return path
        if entry.source is None:
            raise ModelNotFound(f"this installation of Mezzotint came without the {name} model's files")
        raise ModelNotFound(f"{name} is not on this machine; fetch it with: mezzotint models pull {name}")
    try:
        # Whole, for its last part is what the model is called: of `.` there is none.
        path = Path(os.path.abspath(Path(name).expanduser()))
        if path.is_file() and path.suffix == ".safetensors":
            return path
        if path.is_dir() and ((path / "model_index.json").is_file() or holds_graphs(path)):
            return path
        if path.is_dir():
            raise ModelNotFound(f"{name} is not a diffusers model: it has no model_index.json")
    except OSError as error:
        raise ModelNotFound(f"no model {name!r} that can be read: {os_error_text(error)}") from None
    except RuntimeError:
        raise ModelNotFound(f"no model {name!r}: there is no user of that name") from None
    known = ", ".join(CATALOGUE)
    raise ModelNotFound(
        f"no model {name!r}; accepted are {known}, a diffusers folder, or a single .safetensors file"
    )


def base_of(path: Path, entry: CatalogueEntry | None) -> Path | None:
    """Where the model lies whose tokenizers and other files complete the one at `path`, if it takes any.

    Raises:
        ModelNotFound: it is not on this machine.
    """
    if path.is_file():
        return find_model("sdxl")
    return find_model(entry.base) if entry is not None and entry.base is not None else None


def limits_of(name: str) -> ModelLimits:
    """What the model draws by default and at most.

    Raises:
        ModelNotFound, ModelInvalid: there is no such model, or its configuration is unreadable.
    """
    if name in CATALOGUE:
        return CATALOGUE[name].limits
    path = find_model(name)
    if holds_graphs(path):
        return read_artefact(path).limits
    if path.is_file():
        side = SDXL_SAMPLE_SIZE * PIXELS_PER_LATENT
        return limits_of_size(side, side, "Euler")
    width, height = _sample_size(path)
    return limits_of_size(width * PIXELS_PER_LATENT, height * PIXELS_PER_LATENT, sampler_of(path))


def _sample_size(path: Path) -> tuple[int, int]:
    """Width and height in latents, from the UNet's `sample_size`: one side, or [height, width]."""
    size = read_json(path / "unet/config.json").get("sample_size", SDXL_SAMPLE_SIZE)
    if size is None:
        size = SDXL_SAMPLE_SIZE
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 2 <= side <= MAX_SAMPLE_SIZE for side in sides):
        raise ModelInvalid(
            f"unet/config.json: sample_size must be 2…{MAX_SAMPLE_SIZE} or two of such, [height, width]"
        )
    height, width = sides
    return width, height


def list_models() -> list[ListedModel]:
    """The catalogue, with what of it is on this machine."""
    listed = []
    for entry in CATALOGUE.values():
        installed = _is_installed(entry)
        path = catalogue_path(entry)
        listed.append(
            ListedModel(
                name=entry.name,
                title=entry.title,
                license=entry.license,
                repository=entry.source.repository if entry.source else None,
                revision=entry.source.revision if entry.source else None,
                installed=installed,
                path=path if installed else None,
                bytes=sum(_sizes(path)) if installed else 0,
            )
        )
    return listed


def check(name: str) -> CheckReport:
    """Hold a model's files to its manifest.

    Raises:
        ModelNotFound: there is no such model.
        ModelInvalid: naming the first file that is not as it should be.
    """
    path = find_model(name)
    verified = verify(path, required=name in CATALOGUE)
    sizes = _sizes(path)
    return CheckReport(name, path, len(sizes), sum(sizes), verified)


def verify(path: Path, *, required: bool) -> bool:
    """Whether a manifest vouches for the model at `path`; with `required`, there must be one.

    Raises:
        ModelInvalid: a file is of a refused kind, or not as the manifest lists it.
    """
    if path.is_file():
        return False
    check_file_kinds(path)
    if not required and read_manifest(path) is None:
        return False
    check_manifest(path)
    return True


def describe(name: str) -> dict[str, Any]:
    """What there is to know of a model, in plain JSON types; `vocabulary` where the model states its own.

    Raises:
        ModelNotFound, ModelInvalid: there is no such model, or its configuration is unreadable.
    """
    entry = CATALOGUE.get(name)
    installed = entry is None or _is_installed(entry)
    path = find_model(name) if installed else None
    added = find_added(path) if path else Added()
    described: dict[str, Any] = {
        "name": name,
        "title": entry.title if entry else name,
        "license": entry.license if entry else None,
        "repository": entry.source.repository if entry and entry.source else None,
        "revision": entry.source.revision if entry and entry.source else None,
        "installed": installed,
        "limits": {field: value for field, value in asdict(limits_of(name)).items() if field not in ADDED},
        **{kind: [asdict(each.served) for each in getattr(added, kind)] for kind in ADDED},
        "samplers": [sampler.name for sampler in SAMPLERS],
    }
    vocabulary = path / VOCABULARY if path else None
    if vocabulary and vocabulary.is_file():
        described["vocabulary"] = read_json(vocabulary)
    return described


def _is_installed(entry: CatalogueEntry) -> bool:
    sign = catalogue_path(entry) / ("model_index.json" if entry.source is None else MANIFEST_NAME)
    try:
        return sign.is_file()
    except OSError as error:
        raise SettingInvalid(
            f"MEZZOTINT_HOME takes a folder that can be read; {sign.parent}: {os_error_text(error)}",
            param="MEZZOTINT_HOME",
        ) from None


def _sizes(path: Path) -> list[int]:
    """Of its files, in bytes."""
    files = [path] if path.is_file() else path.rglob("*")
    return [file.stat().st_size for file in files if file.is_file()]
