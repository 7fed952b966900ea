"""Measures what the pack adds to a host that has loaded its own modules."""

from __future__ import annotations

import asyncio
import sys
import time

import utils.extra_config  # noqa: F401, I001  main.py imports it first: nodes.py hides the package behind a file
import nodes
import server


def main() -> dict[str, object]:
    """CPU seconds of importing the pack and building every schema, and the modules that came with it."""
    assert nodes.NODE_CLASS_MAPPINGS, "ComfyUI's own nodes are loaded first, as at its start"
    server.PromptServer(asyncio.new_event_loop())
    before = set(sys.modules)
    started = time.process_time()
    import lumina2_trainer

    extension = asyncio.run(lumina2_trainer.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    return {"seconds": time.process_time() - started, "modules": sorted(set(sys.modules) - before)}
