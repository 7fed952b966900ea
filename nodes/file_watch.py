"""Notices that files changed: what a cached node output points to is gone or damaged, or a prompt library edited."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from pathlib import Path

from ..trainer_core.context import StepContext
from ..trainer_core.errors import TrainerError


class FileWatch:
    """Counts, for each topic, the outputs that have been lost.

    ComfyUI keeps a node's output as long as its inputs and its fingerprint stay the same. With the count of its topic
    as fingerprint, a node runs again instead of handing out a dead path, and nodes of other topics don't: everything
    behind a node that runs again runs again too, down to Save Adapter and KSampler.
    """

    def __init__(self) -> None:
        self._paths: defaultdict[str, set[Path]] = defaultdict(set)
        self._num_lost: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, topic: str, path: Path) -> None:
        """Watch one more file."""
        with self._lock:
            self._paths[topic].add(path)

    def mark_lost(self, topic: str) -> None:
        """Something was found damaged that no look at the watched files shows."""
        with self._lock:
            self._num_lost[topic] += 1

    def count_lost(self, topic: str) -> int:
        """How many losses of a topic there were so far; it never falls."""
        with self._lock:
            lost = {path for path in self._paths[topic] if not path.exists()}
            self._paths[topic] -= lost
            self._num_lost[topic] += len(lost)
            return self._num_lost[topic]


FILES = FileWatch()
"""Files of this process's nodes, under the topics below and the folders of the caches (data/index.py)."""


def watch_cache(folder: str, index_path: str) -> None:
    """Remember a cache that a node's output points to.

    Args:
        folder: LATENTS_FOLDER or EMBEDS_FOLDER.
        index_path: The cache's index.
    """
    FILES.add(folder, Path(index_path))


def count_lost_caches(folder: str) -> int:
    """How many caches of this kind were deleted or damaged: a fingerprint that makes the host run the node again."""
    return FILES.count_lost(folder)


def watch_run(run_name: str, final_path: str) -> None:
    """Remember a finished run that a node's output points to."""
    _watch_named("run", run_name, final_path)


def count_lost_runs(run_name: str | None) -> int:
    """How many runs of this name were deleted, of any name if another node gives it: a fingerprint."""
    return FILES.count_lost(_topic("run", run_name))


def watch_pictures(name: str, path: str) -> None:
    """Remember the folder of pictures, written under a name, that a node's output points to."""
    _watch_named("pictures", name, path)


def count_lost_pictures(name: str | None) -> int:
    """How many of these folders were deleted or replaced, of any name if another node gives it: a fingerprint."""
    return FILES.count_lost(_topic("pictures", name))


def _watch_named(kind: str, name: str, path: str) -> None:
    for topic in (_topic(kind, name), _topic(kind, None)):
        FILES.add(topic, Path(path))


def _topic(kind: str, name: str | None) -> str:
    """Of what has this name; of all of the kind if the name is unknown."""
    return f"{kind} {name or ''}"


def fingerprint_prompt_library(path: str | None, context: StepContext) -> str:
    """What changes when the file does; empty if there is none, or one that the step itself will refuse."""
    if not path or not path.strip():
        return ""
    try:
        stat = context.resolve_inside_roots(path.strip(), "prompt_library").stat()
    except (TrainerError, OSError):
        return ""
    return f"{stat.st_size}:{stat.st_mtime_ns}"
