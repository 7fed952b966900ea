"""Prompt library files: JSON that gives each prompt a short name, as SimpleTuner's user prompt library does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainerError
from ..run_names import MARKED
from ..settings import check_file_name

PROMPT_KEY = "prompt"
MAX_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class NamedPrompt:
    """A prompt and the name its pictures get."""

    name: str
    prompt: str


def read_prompt_library(path: Path) -> tuple[NamedPrompt, ...]:
    """The prompts of a file `{"name": "prompt", ...}` in its order; `{"name": {"prompt": "..."}}` is read too.

    Raises:
        TrainerError: The file cannot be read, is not such JSON, or a name cannot be a file's.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TrainerError(f"prompt_library {path.name} is larger than {MAX_BYTES >> 20} MiB: choose another file")
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise TrainerError(
            f"prompt_library {path.name} cannot be read ({error.strerror}): choose another file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise TrainerError(f"prompt_library {path.name} is not valid JSON ({error}): correct it") from error
    if not isinstance(content, dict) or not content:
        raise TrainerError(f'prompt_library {path.name} holds no prompts: write {{"name": "prompt", ...}}')
    return tuple(_read_entry(path, name, value) for name, value in content.items())


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content


def _read_entry(path: Path, name: str, value: Any) -> NamedPrompt:
    check_file_name(f"a name in prompt_library {path.name}", name)
    ending = next((f"_{weights}" for weights in MARKED if name.endswith(f"_{weights}")), None)
    if ending:
        raise TrainerError(
            f"the name {name!r} in prompt_library {path.name} ends in {ending}, which marks pictures of other weights:"
            " choose another"
        )
    if isinstance(value, dict):
        unknown = [key for key in value if key != PROMPT_KEY]
        if unknown:
            raise TrainerError(
                f"{name!r} in prompt_library {path.name} has the key {unknown[0]!r}, which is not known: only"
                f" {PROMPT_KEY!r} is"
            )
        value = value.get(PROMPT_KEY)
    if not isinstance(value, str) or not value.strip():
        raise TrainerError(f"{name!r} in prompt_library {path.name} has no prompt: write a text that is not empty")
    return NamedPrompt(name=name, prompt=value.strip())
