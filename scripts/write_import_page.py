"""Writes the table of SimpleTuner's keys anew into docs/import-simpletuner.md, from the tables in the code."""

from __future__ import annotations

from pathlib import Path

from lumina2_trainer.trainer_core.importers.simpletuner.report import known_keys

PAGE = Path(__file__).resolve().parent.parent / "docs" / "import-simpletuner.md"
HEADING = "## All keys\n"


def main() -> None:
    """Replace everything below the heading."""
    text, heading, _ = PAGE.read_text("utf-8").partition(HEADING)
    PAGE.write_text(f"{text}{heading}\n{known_keys()}", encoding="utf-8")


if __name__ == "__main__":
    main()
