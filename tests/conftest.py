"""Says at the end of a run how many host and browser tests really ran."""

from __future__ import annotations

from typing import Any

SUITES = ("host", "browser")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each suite that needs something which this machine may lack."""
    for suite in SUITES:
        counts = {
            outcome: len({r.nodeid for r in terminalreporter.stats.get(outcome, ()) if f"tests/{suite}/" in r.nodeid})
            for outcome in ("passed", "failed", "error", "skipped")
        }
        if any(counts.values()):
            num_ran = counts["passed"] + counts["failed"] + counts["error"]
            terminalreporter.write_line(f"{suite} tests: {num_ran} ran, {counts['skipped']} skipped")
