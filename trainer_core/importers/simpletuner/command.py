"""`lumina2-trainer import-simpletuner`: SimpleTuner's files in, a workflow file out."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import TrainerError
from ...files import write_json_atomically
from ...workflow.canvas import Graph, graph_content
from .read import LYCORIS_CONFIG, find_beside, read_backends, read_config, read_lycoris
from .report import report_text, shown, title
from .rules import Options
from .run_keys import is_lycoris
from .translate import IGNORED, UNKNOWN, Backends, Translation, translate

LOOKED_AT = (
    "lora.start_from",
    "lycoris.start_from",
    "dataset.mask_folder",
    "validation.prompt_library",
    "validation.clip_model",
)
"""Settings that need a file in its place, or mean something else than the key did: the note on the canvas says so."""


def import_simpletuner(config_path: Path, backends_path: Path | None, output_path: Path) -> str:
    """Write the workflow of a configuration.

    Args:
        config_path: config.json or config.toml.
        backends_path: The data backend file; None takes the one that the configuration names.
        output_path: Where the workflow goes; a workflow there is replaced, any other file is not.

    Returns:
        What became of every key, for the terminal.

    Raises:
        TrainerError: A file cannot be read, or a value in it, or the output is another file, such as one of these.
    """
    if output_path.is_file() and not _is_workflow(output_path):
        raise TrainerError(f"{output_path} exists and is no workflow: choose another --output, it is not overwritten")
    translation = read_translation(config_path, backends_path)
    graph = Graph(settings=translation.settings, datasets=translation.datasets, is_full=translation.is_full)
    content = graph_content(graph, read_me_text(config_path.name, translation))
    try:
        write_json_atomically(output_path, content)
    except OSError as error:
        raise TrainerError(f"{output_path} cannot be written ({error.strerror}): choose another --output") from error
    return report_text(translation)


def _is_workflow(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "nodes" in content


def read_translation(config_path: Path, backends_path: Path | None = None) -> Translation:
    """Read all files of a configuration; arguments and errors as of `import_simpletuner`."""
    given = read_config(config_path)
    config = Options(where=config_path.name, given=given)
    if backends_path is None:
        backends_path = find_beside(config_path, given.get("data_backend_config"), "data_backend_config")
    lycoris = None
    if is_lycoris(config):
        name = given.get("lycoris_config") or LYCORIS_CONFIG
        path = find_beside(config_path, name, "lycoris_config")
        lycoris = Options(where=path.name, given=read_lycoris(path))
    return translate(config, Backends(where=backends_path.name, entries=read_backends(backends_path)), lycoris)


def read_me_text(name: str, translation: Translation) -> str:
    """Markdown for the note on the canvas: what to choose, and which keys have no place here."""
    lines = [
        f"# Imported from {name}",
        "",
        "1. **Load Lumina2**: choose your model.",
        "2. **Dataset Folder**: the folder must lie in ComfyUI's `input`, or in a folder listed under"
        " `lumina2_datasets` in `extra_model_paths.yaml`.",
        "3. Press **Run**. **Cancel** keeps the work; **Run** again resumes it.",
        "",
    ]
    needs = [
        f"* **{title(target, translation.is_full)}** `{shown(value)}`: {row.note}"
        for row in translation.rows
        for target, value in row.settings.items()
        if target in LOOKED_AT and row.note
    ]
    lines += ["## To look at", "", *needs, ""] if needs else []
    lines += ["## Keys that are not used here", ""]
    for row in translation.rows:
        if row.state in (IGNORED, UNKNOWN):
            reason = row.note or "not known: check the spelling"
            value = f" {shown(row.value)}" if row.value != "" else ""
            lines.append(f"* `{row.key}`{value}: {reason}")
    return "\n".join(lines) + "\n"
