"""Measures what the pack adds to a host that has loaded its own modules."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time


def main() -> dict[str, object]:
    """CPU seconds of importing the pack and building every schema, those of the host's own modules before, and the
    modules that came with the pack.
    """
    began = time.process_time()
    importlib.import_module("utils.extra_config")  # as main.py does: nodes.py hides this package behind a file
    nodes = importlib.import_module("nodes")
    server = importlib.import_module("server")
    assert nodes.NODE_CLASS_MAPPINGS, "ComfyUI's own nodes are loaded first, as at its start"
    server.PromptServer(asyncio.new_event_loop())
    before = set(sys.modules)
    started = time.process_time()
    import lumina2_trainer

    extension = asyncio.run(lumina2_trainer.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    return {
        "seconds": time.process_time() - started,
        "host_seconds": started - began,
        "modules": sorted(set(sys.modules) - before),
    }
