"""The page about importing lists the keys that the code knows."""

from __future__ import annotations

from lumina2_trainer.trainer_core.context import PACK_DIR
from lumina2_trainer.trainer_core.importers.simpletuner.report import known_keys

PAGE = PACK_DIR / "docs" / "import-simpletuner.md"


def test_page_holds_the_table_of_all_keys() -> None:
    assert known_keys().strip() in PAGE.read_text("utf-8"), "run python scripts/write_import_page.py"


def test_readme_leads_to_the_page() -> None:
    assert "docs/import-simpletuner.md" in (PACK_DIR / "README.md").read_text("utf-8")
