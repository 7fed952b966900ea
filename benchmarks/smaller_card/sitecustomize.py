"""On PYTHONPATH, with SMALLER_CARD_GIB set: torch says that the GPU has so much memory in all.

Child processes inherit it. What is free stays what the driver says: hold.py takes the rest.
"""

import importlib.abc
import importlib.machinery
import os
import sys

TOTAL = os.environ.get("SMALLER_CARD_GIB")


class Finder(importlib.abc.MetaPathFinder):
    """Changes torch.cuda.memory as it is imported."""

    def find_spec(self, name, path, target=None):
        if name != "torch.cuda.memory":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            tell = module.mem_get_info
            module.mem_get_info = lambda device=None: (tell(device)[0], int(float(TOTAL) * 2**30))

        spec.loader.exec_module = exec_module
        return spec


if TOTAL:
    sys.meta_path.insert(0, Finder())
