"""What the driver counts: most memory in use of each GPU, by nvidia-smi, while something runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_MILLISECONDS = 200


@contextmanager
def watch_gpu_memory(path: Path) -> Iterator[list[float]]:
    """Most GiB of each GPU while the block runs, filled in at its end; empty without nvidia-smi.

    Args:
        path: For what nvidia-smi prints.
    """
    peaks_gib: list[float] = []
    program = shutil.which("nvidia-smi")
    if program is None:
        yield peaks_gib
        return
    query = ["--query-gpu=index,memory.used", "--format=csv,noheader,nounits", "-lms", str(POLL_MILLISECONDS)]
    with path.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([program, *query], stdout=file, stderr=subprocess.DEVNULL)
        try:
            yield peaks_gib
        finally:
            process.kill()
            process.wait()
            peaks_gib += read_peaks(path.read_text(encoding="utf-8"))


def read_peaks(text: str) -> list[float]:
    """Most GiB of each GPU, in their order.

    Args:
        text: Lines of index and MiB.
    """
    peaks: defaultdict[int, int] = defaultdict(int)
    for index, mebibytes in re.findall(r"^(\d+), (\d+)$", text, re.MULTILINE):
        peaks[int(index)] = max(peaks[int(index)], int(mebibytes))
    return [peaks[index] / 1024 for index in sorted(peaks)]


def used_gib() -> float:
    """GiB in use of the first GPU now; 0 without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0.0
    query = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) / 1024
