"""Record the widgets of every node in this version, before it is released.

    python scripts/record_widgets.py

ComfyUI stores widget values by position. `tests/test_released.py` holds what is written here against later versions, so
that workflows saved today still open with every value in its place. A version is recorded once.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from lumina2_trainer.trainer_core.files import write_json_atomically
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

PACK_DIR = Path(__file__).parents[1]
WIDGETS_FILE = "widgets.json"


def main() -> None:
    folder = PACK_DIR / "tests" / "released" / version("lumina2-trainer")
    if folder.exists():
        sys.exit(f"{folder.name} is recorded already: raise version in pyproject.toml and install again")
    widgets = {
        node: {field.name: field.default for field in describe_settings(step.settings)}
        for node, step in NODE_STEPS.items()
    }
    write_json_atomically(folder / WIDGETS_FILE, widgets)
    for workflow in (PACK_DIR / "example_workflows").glob("*.json"):
        shutil.copy(workflow, folder / workflow.name)
    print(f"recorded {len(widgets)} nodes in {folder.relative_to(PACK_DIR)}")


if __name__ == "__main__":
    main()
