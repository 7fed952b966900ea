"""Finds ComfyUI checkouts and runs scripts inside them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACK_DIR = Path(__file__).resolve().parents[2]
BOOTSTRAP = Path(__file__).resolve().parent / "bootstrap.py"
VENV_PYTHONS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")


@dataclass(frozen=True, kw_only=True)
class Host:
    """One ComfyUI checkout with the Python that runs it."""

    path: Path
    python: Path
    version: str
    packages_dir: Path
    """Folder in which this pack is importable as `lumina2_trainer`; meant for PYTHONPATH."""

    def environment(self) -> dict[str, str]:
        """Environment of a process in which ComfyUI and `lumina2_trainer` can be imported."""
        bytecode = "PYTHONDONTWRITEBYTECODE"  # a user's host has it after its first start
        kept = {name: value for name, value in os.environ.items() if name != bytecode}
        return {**kept, "PYTHONPATH": os.pathsep.join([str(self.packages_dir), str(self.path)])}

    def run(
        self, script_path: Path, *args: object, host_args: tuple[str, ...] = ("--cpu",), timeout_seconds: float = 300
    ) -> Any:
        """Call `main(*args)` of a script in the host's own Python, with ComfyUI importable.

        Args:
            script_path: A file that defines `main` and may import `comfy` at its top.
            args: Given to `main` as strings.
            host_args: ComfyUI's own command line.
            timeout_seconds: After this the script is killed.

        Returns:
            What `main` returned, through JSON.
        """
        result_path = self.packages_dir / f"result-{script_path.stem}.json"
        result_path.unlink(missing_ok=True)
        command = [str(self.python), str(BOOTSTRAP), str(result_path), json.dumps(host_args), str(script_path)]
        done = subprocess.run(
            [*command, *map(str, args)],
            env=self.environment(),
            cwd=self.packages_dir,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        output = f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        assert done.returncode == 0, f"{script_path.name} failed in ComfyUI {self.version}:\n{output}"
        return json.loads(result_path.read_text("utf-8"))


def find_checkouts() -> list[Path]:
    """ComfyUI folders: $COMFYUI_PATH (joined as in PATH), the one this pack is installed in, ~/comfy/ComfyUI*."""
    named = [Path(p).expanduser() for p in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if p]
    for path in named:
        assert (path / "comfyui_version.py").is_file(), f"COMFYUI_PATH names {path}, which is no ComfyUI checkout"
    around = [PACK_DIR.parent.parent] if PACK_DIR.parent.name == "custom_nodes" else []
    usual = sorted((Path.home() / "comfy").glob("ComfyUI*"))
    candidates = [path.resolve() for path in (*named, *around, *usual)]
    return [path for path in dict.fromkeys(candidates) if (path / "comfyui_version.py").is_file()]


def read_version(checkout: Path) -> str:
    """ComfyUI's version, such as "0.3.64"."""
    found = re.search(r'__version__ = "([^"]+)"', (checkout / "comfyui_version.py").read_text("utf-8"))
    assert found, f"{checkout}/comfyui_version.py names no version"
    return found.group(1)


def open_host(checkout: Path, packages_dir: Path) -> Host:
    """A checkout, ready to run scripts.

    Args:
        checkout: A ComfyUI folder.
        packages_dir: Empty folder for this host alone.
    """
    (packages_dir / "lumina2_trainer").symlink_to(PACK_DIR, target_is_directory=True)
    pythons = [checkout / name for name in VENV_PYTHONS if (checkout / name).exists()]
    return Host(
        path=checkout,
        python=pythons[0] if pythons else Path(sys.executable),
        version=read_version(checkout),
        packages_dir=packages_dir,
    )
