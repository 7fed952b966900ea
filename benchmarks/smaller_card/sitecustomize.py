"""On PYTHONPATH, with SMALLER_CARD_GIB set: torch says that the GPU has so much memory in all.

Child processes inherit it. What is free stays what the driver says: hold.py takes the rest.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

TOTAL = os.environ.get("SMALLER_CARD_GIB")


class Finder(importlib.abc.MetaPathFinder):
    """Changes torch.cuda.memory as it is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch.cuda.memory":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None and TOTAL
        execute, total = spec.loader.exec_module, int(float(TOTAL) * 2**30)

        def exec_module(module: ModuleType) -> None:
            execute(module)
            tell = module.mem_get_info
            module.mem_get_info = lambda device=None: (tell(device)[0], total)  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if TOTAL:
    sys.meta_path.insert(0, Finder())
