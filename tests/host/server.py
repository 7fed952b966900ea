"""Starts a real ComfyUI server with this pack in it, and talks to it as a browser would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websocket

from .checkouts import PACK_DIR, Host
from .prompts import write_tiny_files

PACK_FOLDER = "lumina2-trainer"
SECONDS_TO_START = 180.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a queued prompt ended."""

    kind: str
    """"execution_success", "execution_error" or "execution_interrupted"."""
    data: Mapping[str, Any]
    """The message that ended it."""
    messages: tuple[tuple[str, Mapping[str, Any]], ...]
    """Every JSON message of the websocket while it ran, in order: (type, data)."""

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Data of all messages of one type."""
        return [data for name, data in self.messages if name == kind]


class ServerProcess:
    """A process of a server, and of its next one after a restart; it is in a process group of its own."""

    def __init__(self, command: Sequence[str], base_dir: Path, log_path: Path) -> None:
        self._command = command
        self._base_dir = base_dir
        self._log_path = log_path
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._base_dir,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )

    def end(self) -> None:
        """End the server and whatever it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=15)

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """What the server ended with; None while it runs."""
        return self._process.poll() if self._process else None


@dataclass(frozen=True, kw_only=True)
class HostServer:
    """A running server; all its folders are below `base_dir`."""

    host: Host
    url: str
    base_dir: Path
    log_path: Path
    process: ServerProcess

    def restart(self) -> None:
        """End the server, whatever it is doing, and start it again with the same folders at the same address."""
        self.process.end()
        self.process.start()
        _wait_until_up(self)

    def request(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any]:
        """Status and decoded JSON (or text) of an HTTP request; a body makes it a JSON POST."""
        data = None if body is None else json.dumps(body).encode()
        headers = {**({"Content-Type": "application/json"} if data else {}), **(headers or {})}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, text = response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except json.JSONDecodeError:
            return status, text

    def run_prompt(
        self,
        prompt: Mapping[str, Any],
        *,
        on_message: Callable[[str, Mapping[str, Any]], None] | None = None,
        timeout_seconds: float = 300,
        workflow: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Queue a prompt and follow it to its end.

        Args:
            prompt: In the API's format.
            on_message: Called with type and data of each message while it runs.
            timeout_seconds: Fails after this.
            workflow: The canvas graph it came from.
        """
        client_id = uuid.uuid4().hex
        connection = websocket.create_connection(f"{self.url.replace('http', 'ws')}/ws?clientId={client_id}", timeout=5)
        try:
            extra = {"extra_data": {"extra_pnginfo": {"workflow": workflow}}} if workflow else {}
            status, answer = self.request("/prompt", {"prompt": prompt, "client_id": client_id, **extra})
            assert status == 200, f"/prompt refused: {json.dumps(answer, indent=1)[:4000]}"
            assert answer["node_errors"] == {}, answer["node_errors"]
            return self._follow(connection, answer["prompt_id"], on_message, timeout_seconds)
        finally:
            connection.close()

    def _follow(
        self,
        connection: websocket.WebSocket,
        prompt_id: str,
        on_message: Callable[[str, Mapping[str, Any]], None] | None,
        timeout_seconds: float,
    ) -> Outcome:
        messages: list[tuple[str, Mapping[str, Any]]] = []
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            try:
                received = connection.recv()
            except websocket.WebSocketTimeoutException:
                continue
            if not isinstance(received, str):
                continue
            message = json.loads(received)
            kind, data = message["type"], message.get("data") or {}
            messages.append((kind, data))
            if on_message:
                on_message(kind, data)
            ended = kind in ("execution_success", "execution_error", "execution_interrupted")
            if ended and data.get("prompt_id") == prompt_id:
                return Outcome(kind=kind, data=data, messages=tuple(messages))
        raise AssertionError(f"prompt did not end in {timeout_seconds} s; log:\n{self.read_log()[-4000:]}")

    def read_log(self) -> str:
        """What the server printed so far."""
        return self.log_path.read_text("utf-8", errors="replace")

    @property
    def input_dir(self) -> Path:
        return self.base_dir / "input"

    @property
    def output_dir(self) -> Path:
        return self.base_dir / "output"


@contextmanager
def start_server(host: Host, base_dir: Path, *extra_args: str) -> Iterator[HostServer]:
    """Run a server until the block ends.

    Args:
        host: The checkout.
        base_dir: Gets custom_nodes, models, input, output and so on.
        extra_args: More of ComfyUI's own command line.
    """
    for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base_dir / folder).mkdir(parents=True, exist_ok=True)
    link = base_dir / "custom_nodes" / PACK_FOLDER
    if not link.exists():
        link.symlink_to(PACK_DIR, target_is_directory=True)
    port = _free_port()
    arguments = {
        "--listen": "127.0.0.1",
        "--port": str(port),
        "--base-directory": str(base_dir),
        "--whitelist-custom-nodes": PACK_FOLDER,
        "--database-url": "sqlite:///:memory:",
    }
    command = [str(host.python), str(host.path / "main.py"), *(part for pair in arguments.items() for part in pair)]
    command += ["--disable-all-custom-nodes", "--cpu", "--disable-api-nodes", "--disable-auto-launch"]
    log_path = base_dir / "server.log"
    process = ServerProcess([*command, "--dont-print-server", *extra_args], base_dir, log_path)
    url = f"http://127.0.0.1:{port}"
    server = HostServer(host=host, url=url, base_dir=base_dir, log_path=log_path, process=process)
    try:
        process.start()
        _wait_until_up(server)
        yield server
    finally:
        process.end()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(server: HostServer) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        status = server.process.exit_status
        assert status is None, f"the server ended with {status}:\n{server.read_log()[-8000:]}"
        try:
            status, _ = server.request("/system_stats")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            status = 0
        if status == 200:
            return
        time.sleep(0.5)
    raise AssertionError(f"the server did not answer in {SECONDS_TO_START} s:\n{server.read_log()[-8000:]}")


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A running server with a tiny model and a tiny dataset, shared by the tests of one folder."""
    base_dir = tmp_path_factory.mktemp("comfyui")
    write_tiny_files(base_dir)
    with start_server(host, base_dir) as running:
        yield running
