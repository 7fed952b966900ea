"""Reads SimpleTuner's files: the configuration, its data backends, and the file of a LyCORIS adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import TrainerError

LYCORIS_CONFIG = "config/lycoris_config.json"
"""Where SimpleTuner looks if the configuration names no other file."""


def read_config(path: Path) -> dict[str, Any]:
    """A configuration in JSON or TOML, by key without leading dashes.

    Raises:
        TrainerError: The file cannot be read, is no object, or writes a key twice.
    """
    if path.name.lower().endswith(".env"):
        raise TrainerError(f"{path.name} is a file of shell variables: give SimpleTuner's config.json or config.toml")
    content = _read_toml(path) if path.suffix.lower() == ".toml" else _read_json(path)
    if not isinstance(content, dict):
        raise TrainerError(f"{path.name} is not a configuration of SimpleTuner: write an object with its options")
    config: dict[str, Any] = {}
    for key, value in content.items():
        name = key.lstrip("-")
        if name in config:
            raise TrainerError(f"{path.name} writes {name} twice, with dashes and without: keep one of them")
        config[name] = value
    return config


def read_backends(path: Path) -> list[Mapping[str, Any]]:
    """The entries of a data backend file.

    Raises:
        TrainerError: The file cannot be read, or is no list of objects.
    """
    content = _read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise TrainerError(f"{path.name} is not a data backend file of SimpleTuner: write a list of objects")
    return content


def read_lycoris(path: Path) -> Mapping[str, Any]:
    """The file of a LyCORIS adapter.

    Raises:
        TrainerError: The file cannot be read, or is no object.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise TrainerError(f"{path.name} is not a LyCORIS configuration: write an object with algo and its options")
    return content


def find_beside(config_path: Path, name: Any, key: str) -> Path:
    """A file that the configuration names.

    SimpleTuner looks from the folder it is started in, which is rarely this one, so the folders above the
    configuration and the configuration's own are looked in too.

    Raises:
        TrainerError: It is not there.
    """
    if not isinstance(name, str) or not name:
        raise TrainerError(f"{config_path.name}: {key} is missing: name the file there, or on the command line")
    wanted = Path(name).expanduser()
    folder = config_path.absolute().parent
    places = [Path.cwd(), folder, *folder.parents]
    for path in (*(place / wanted for place in places), folder / wanted.name):
        if path.is_file():
            return path
    raise TrainerError(
        f"{config_path.name}: {key} is {name!r}, which was not found: put the file beside {config_path.name},"
        " or name it on the command line"
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TrainerError(f"{path.name} cannot be read as JSON: {error}") from error


def _read_toml(path: Path) -> Any:
    try:
        import tomllib
    except ImportError as error:
        raise TrainerError(f"{path.name} needs Python 3.11 or newer: save it as config.json") from error
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainerError(f"{path.name} cannot be read as TOML: {error}") from error
