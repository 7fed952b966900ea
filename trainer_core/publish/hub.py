"""Sending a run's weights, pictures and model card to the Hugging Face hub, in the background.

Everything that is to be sent lies in the run's folder `hub/` as it will lie in the repository. Sending that folder
again sends what the hub lacks, so a failed upload is repaired by running the finished job once more.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainerError
from ..files import write_bytes_atomically
from ..run_names import name_of
from .background import Background
from .model_card import CardFacts, CardPicture, write_card
from .notices import Report, describe_error
from .pictures import read_pictures
from .settings import AT_CHECKPOINTS, NEVER, HubSettings

CARD_FILE = "README.md"
CHECKPOINTS_FOLDER, PICTURES_FOLDER = "checkpoints", "images"
RETRY_SECONDS = (2.0, 15.0)
"""Waits before a call is tried again that failed by the network or by the server."""


@dataclass(frozen=True, kw_only=True)
class FinishedFiles:
    """Names of the finished weights in the repository."""

    comfyui: str
    diffusers: str = ""
    """The same adapter with diffusers' names; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class UploadSource:
    """What the run has to offer; the functions are called when something is sent."""

    name: str
    """Of the run folder."""
    folder: Path
    """`hub/` in the run folder."""
    num_steps: int
    card: CardFacts
    """All that is known before training ends."""
    list_pictures: Callable[[], Sequence[Path]]
    """Pictures of the last validation."""
    write_finished: Callable[[Path], FinishedFiles]
    """Puts the finished weights into a folder."""


class HubUpload:
    """Keeps the folder `hub/` up to date, and the repository after it."""

    def __init__(
        self, settings: HubSettings, *, source: UploadSource, report: Report, should_stop: Callable[[], bool]
    ) -> None:
        """
        Args:
            settings: Which repository, and when.
            source: What there is to send.
            report: Told of every upload and of every failure, in one sentence.
            should_stop: Whether the user stopped: then nothing is waited for.
        """
        self._settings = settings
        self._source = source
        self._report = report
        self._should_stop = should_stop
        self._background = Background("hub upload", self._report_failure)
        self._told = ""

    def started(self, step: int) -> None:
        """Make the repository now: a missing token or right is told at the start, not after hours."""
        if self._settings.push != NEVER:
            self._background.submit(self._open_early)

    def _open_early(self) -> None:
        _with_retries(self._open_repository)

    def stepped(self, line: Any) -> None:
        """The hub is told of no steps."""

    def measured(self, line: Any) -> None:
        """Nor of scores."""

    def checkpointed(self, step: int, weights_path: Path) -> None:
        """Send a checkpoint; the last one is the finished file, which is sent instead."""
        if self._settings.push != AT_CHECKPOINTS or step >= self._source.num_steps:
            return

        def stage() -> None:
            name = f"{CHECKPOINTS_FOLDER}/{self._source.name}-{step:06d}.safetensors"
            chosen = weights_path.with_name(name_of(weights_path.name, self._settings.weights))
            link_or_copy(chosen, self._source.folder / name)
            self._background.submit(lambda: self._send(step, FinishedFiles(comfyui=name)))

        self._background.call_now(stage)  # now, for old checkpoints are deleted while the upload waits

    def validated(self, step: int, picture_paths: Sequence[Path]) -> None:
        """The last pictures go with the next weights."""

    def finished(self) -> None:
        """Send the finished weights, and what earlier uploads of this run left over."""

        def send() -> None:
            self._told = ""
            files = self._source.write_finished(self._source.folder)
            self._send(self._source.num_steps, files)

        self._background.submit(send)

    def close(self) -> None:
        """Wait until everything is sent."""
        if not self._background.close(self._should_stop):
            self._report(
                "warning",
                f"the upload to {self._settings.repo_id} was not waited for:"
                " queue the job again to send what is missing",
            )

    def _send(self, step: int, files: FinishedFiles) -> None:
        self._write_card(step, files, self._settings.repo_id)
        if self._settings.push == NEVER:
            return
        try:
            repo_id = _with_retries(self._open_repository)
            self._write_card(step, files, repo_id)
            url = _with_retries(lambda: self._commit(repo_id, f"{self._source.name}, step {step}"))
        except Exception:
            self._drop_older_checkpoints()
            raise
        self._report("info", f"step {step} is on the hub: {url}")

    def _drop_older_checkpoints(self) -> None:
        """Leave only the newest to be sent later: they keep the space of checkpoints that were deleted."""
        staged = (self._source.folder / CHECKPOINTS_FOLDER).glob("*.safetensors")
        for path in sorted(staged, key=lambda path: int(path.stem.rpartition("-")[2]))[:-1]:
            path.unlink()

    def _write_card(self, step: int, files: FinishedFiles, repo_id: str) -> None:
        pictures = []
        for picture in read_pictures(self._source.list_pictures()):
            name = f"{PICTURES_FOLDER}/{picture.path.name}"
            link_or_copy(picture.path, self._source.folder / name)
            pictures.append(CardPicture(path=name, prompt=picture.prompt))
        card = write_card(
            dataclasses.replace(
                self._source.card,
                repo_id=repo_id,
                step=step,
                weights_file=files.comfyui,
                diffusers_file=files.diffusers,
                pictures=tuple(pictures),
            )
        )
        write_bytes_atomically(self._source.folder / CARD_FILE, card.encode())

    def _open_repository(self) -> str:
        """Make the repository if it is not there; its full id."""
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise TrainerError("there is no token: run `hf auth login` or set HF_TOKEN")
        api, wanted = HfApi(), self._settings
        repo_id = api.create_repo(wanted.repo_id, private=wanted.private, exist_ok=True).repo_id
        if wanted.private and not api.repo_info(repo_id).private:
            raise TrainerError(
                f"the repository {repo_id} is public, so nothing was sent: make it private in its settings on the hub,"
                " or turn private off in Hub Upload"
            )
        return repo_id

    def _commit(self, repo_id: str, message: str) -> str:
        """Send the folder in one commit; gives its address."""
        from huggingface_hub import CommitOperationAdd, HfApi

        folder = self._source.folder
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        operations = [
            CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=str(path))
            for path in paths
        ]
        commit = HfApi().create_commit(repo_id, operations, commit_message=message)
        for path in paths:
            if path.parent.name == CHECKPOINTS_FOLDER:  # it would keep the space of a deleted checkpoint
                path.unlink()
        return str(commit.commit_url)

    def _report_failure(self, error: Exception) -> None:
        reason = _explain(error)
        if reason != self._told:  # every checkpoint of a long run may fail alike
            self._told = reason
            text = f"upload to {self._settings.repo_id} failed; queue the job again to send what is missing: {reason}"
            self._report("warning", text)


def _with_retries(call: Callable[[], str]) -> str:
    """Make a call, again after a while if the network or the server failed."""
    for seconds in RETRY_SECONDS:
        try:
            return call()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(seconds)
    return call()


def _status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: Exception) -> bool:
    status = _status_of(error)
    return not isinstance(error, (TrainerError, ValueError)) and (status is None or status == 429 or status >= 500)


def _explain(error: Exception) -> str:
    """The reason in words that say what to do."""
    remedies = {
        401: "the hub does not accept the token: log in again by `hf auth login` or renew HF_TOKEN",
        403: "the token may not write there: use one with write access to the repository's owner",
    }
    return remedies.get(_status_of(error) or 0) or describe_error(error)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that outlives the first; a copy where the disk has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
