"""Having the system read weights from the disk while something else is done.

Before the weights of a run are read, its libraries are imported, which takes 3 to 4 s. With 5.2 GB on a cold disk of
0.75 GB/s both took 11.2 s one after the other, and 8.0 s like this.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Sequence

from .weights.weight_files import TensorEntry

ASKED_AT_ONCE = 2**24
"""Bytes."""


def read_ahead(entries: Iterable[TensorEntry]) -> threading.Thread | None:
    """Ask for tensors that will soon be read, in a thread, for asking waits where the disk has much to do.

    Returns:
        The thread, which need not be waited for; None on systems that cannot be asked (Windows, macOS).
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    ordered = sorted(entries, key=lambda entry: (entry.path, entry.start))
    thread = threading.Thread(target=_ask_for, args=(ordered,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _ask_for(entries: Sequence[TensorEntry]) -> None:
    try:
        for path, of_one_file in itertools.groupby(entries, key=lambda entry: entry.path):
            with path.open("rb") as file:
                for entry in of_one_file:
                    end = entry.start + entry.num_bytes
                    for start in range(entry.start, end, ASKED_AT_ONCE):
                        size = min(ASKED_AT_ONCE, end - start)
                        os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass  # who reads the file will say what is wrong with it
