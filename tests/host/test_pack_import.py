"""What the pack costs a host that never trains."""

from __future__ import annotations

from pathlib import Path

from .checkouts import Host

SCRIPT = Path(__file__).parent / "script_import_cost.py"
HEAVY = {"diffusers", "transformers", "peft", "accelerate", "sentencepiece"}
MAX_SHARE = 0.045
"""Of the CPU time that the host's own modules take in the same process, for seconds depend on what else a machine does.
It is 0.03: 0.3 s of 11 where everything takes twice as long as usual."""


def test_start_gains_little_and_no_heavy_library(host: Host) -> None:
    measured = host.run(SCRIPT)
    assert not HEAVY & set(measured["modules"])
    # The first run may have written bytecode; the machine may be busy: the better of two counts.
    shares = [run["seconds"] / run["host_seconds"] for run in (measured, host.run(SCRIPT))]
    assert min(shares) < MAX_SHARE
