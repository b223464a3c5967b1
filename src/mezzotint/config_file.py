"""A settings file as a table of names and values, TOML or YAML by its suffix. Knows none of the settings."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mezzotint.errors import SettingInvalid, os_error_text

__all__ = ["read_table"]


def read_table(path: Path) -> dict[str, Any]:
    """What the file holds.

    Raises:
        SettingInvalid: it cannot be read, is neither TOML nor YAML, holds no table, or a name twice.
    """
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise SettingInvalid(f"{path}: a settings file ends in .toml, .yaml or .yml", param="config")
    try:
        # Some editors begin a file with a mark that TOML does not know.
        found = read(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingInvalid(f"{path}: cannot be read: {os_error_text(error)}", param="config") from None
    except ValueError as error:
        # Both parsers say where, over several lines.
        raise SettingInvalid(f"{path}: {' '.join(str(error).split())}", param="config") from None
    except RecursionError:
        raise SettingInvalid(
            f"{path}: is nested too deeply; it takes one flat table", param="config"
        ) from None
    if not isinstance(found, dict):
        raise SettingInvalid(f"{path}: must be one table of settings and their values", param="config")
    return found


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return {}
        # YAML itself lets the last of two equal names win without a word.
        names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is given twice")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
