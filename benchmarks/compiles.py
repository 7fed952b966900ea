"""Counting what is compiled while a program runs."""

from __future__ import annotations

import sys
from typing import Any


class CompileCounter:
    """Counts graphs of torch.compile and Triton kernels from its creation on; both stay 0 where there is neither."""

    def __init__(self) -> None:
        self.num_kernels = 0
        """Triton kernels compiled in this process and not found in its cache on disk."""
        try:
            from triton import knobs
        except ImportError:  # no Triton, or one before 3.4
            return
        knobs.compilation.listener = self._count_kernel

    def _count_kernel(self, *, cache_hit: bool, **details: Any) -> None:
        self.num_kernels += not cache_hit

    @property
    def num_graphs(self) -> int:
        """Graphs that torch.compile has made in this process."""
        # It is imported by the first call of torch.compile, and importing it takes seconds.
        dynamo = sys.modules.get("torch._dynamo.utils")
        return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
