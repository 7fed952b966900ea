"""Notices that a file which a cached node output points to has been deleted."""

from __future__ import annotations

import threading
from pathlib import Path


class FileWatch:
    """Counts watched files that have gone.

    ComfyUI keeps a node's output as long as its inputs and its fingerprint stay the same. With this count as the
    fingerprint, deleting a cache or a run folder makes the nodes run again instead of handing out a dead path.
    """

    def __init__(self) -> None:
        self._paths: set[Path] = set()
        self._num_lost = 0
        self._lock = threading.Lock()

    def add(self, path: Path) -> None:
        """Watch one more file."""
        with self._lock:
            self._paths.add(path)

    def count_lost(self) -> int:
        """How many watched files have gone so far; it never falls."""
        with self._lock:
            lost = {path for path in self._paths if not path.exists()}
            self._paths -= lost
            self._num_lost += len(lost)
            return self._num_lost


FILES = FileWatch()
"""Files of this process's nodes."""
