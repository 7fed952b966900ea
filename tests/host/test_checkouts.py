"""The harness itself: scripts run in the host's Python and give results back."""

from __future__ import annotations

from pathlib import Path

import pytest

from .checkouts import Host, find_checkouts

SCRIPTS = Path(__file__).resolve().parent


def test_script_runs_in_host_with_pack_importable(host: Host) -> None:
    result = host.run(SCRIPTS / "script_versions.py", "two words")
    assert result["cpu"] is True
    assert result["web_directory"] == "./web"
    assert result["word"] == "two words"
    assert host.version.count(".") == 2


def test_comfyui_path_that_is_no_checkout_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="which is no ComfyUI checkout"):
        find_checkouts()
