"""Runs inside a host's Python: sets ComfyUI's command line, calls a script's `main` and writes its result as JSON."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path


def start_host(host_args: list[str]) -> None:
    """Let ComfyUI parse its arguments once, before anything imports its devices."""
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.argv = ["main.py", *host_args]
    import comfy.cli_args


if __name__ == "__main__":
    _, result_path, host_args, script_path, *script_args = sys.argv
    start_host(json.loads(host_args))
    # ComfyUI's `utils` package would hide behind this folder's files otherwise.
    sys.path.remove(str(Path(__file__).resolve().parent))
    sys.argv = [script_path, *script_args]
    result = runpy.run_path(script_path)["main"](*script_args)
    Path(result_path).write_text(json.dumps(result), "utf-8")
