"""The one file that touches ComfyUI's memory management, folders and server."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.utils
import folder_paths
import torch
from server import PromptServer

from ..trainer_core.context import RUNS_FOLDER, StepContext
from ..trainer_core.data.folder import DEMO_FOLDER
from ..trainer_core.data.listing import fingerprint_dataset_folder
from ..trainer_core.device import preserved_torch_state
from ..trainer_core.errors import CacheDamagedError, StopTraining, TrainerError
from ..trainer_core.events import Event, Request
from ..trainer_core.lumina2.models.base_files import (
    BASE_KINDS,
    DEMO_BASE,
    DEMO_MODEL_PATH,
    FROM_BASE,
    TEXT_ENCODER_KINDS,
    VAE_KINDS,
)
from ..trainer_core.run.child import run_in_child
from ..trainer_core.socket_json import from_json, to_json
from ..trainer_core.workflow.nodes import NODE_STEPS
from .file_watch import FILES
from .live_runs import RUNS, Status, Throttle

MODEL_KINDS = tuple(dict.fromkeys((*BASE_KINDS, *TEXT_ENCODER_KINDS, *VAE_KINDS, "loras")))
DATASETS_KIND = "lumina2_datasets"
"""Key in extra_model_paths.yaml for further folders that datasets may lie in."""
STOPS = (StopTraining, memory.InterruptProcessingException)
"""What ends a step that was asked to stop."""
DEVICES_OF_CHILDREN = {"cuda"}
"""Kinds of device on which training runs in a process of its own."""
PIP_NAMES = {"PIL": "pillow"}
"""Packages whose name differs from the module's."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn this pack's errors into what the host shows: one sentence, or a plain interruption."""
    try:
        yield
    except TrainerError as error:
        if isinstance(error, CacheDamagedError):
            FILES.mark_lost(error.cache)
        raise ValueError(str(error)) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        package = PIP_NAMES.get(package, package)
        raise RuntimeError(
            f"the Python package {package} is missing: run `pip install {package}` in ComfyUI's Python environment"
            " and start ComfyUI again"
        ) from error
    except StopTraining:
        memory.throw_exception_if_processing_interrupted()
        raise memory.InterruptProcessingException from None


@contextmanager
def running_step(hidden: Any, *, uses_device: bool = True) -> Iterator[StepContext]:
    """The surroundings of one step: its context, gradients allowed, memory free before and after.

    Args:
        hidden: The node's hidden inputs; the id of the node and its workflow are read from there.
        uses_device: The step loads a model, so the host's own models give their memory back first.
    """
    talk = _Conversation(hidden.unique_id)
    device = memory.get_torch_device()
    with readable_errors(), torch.inference_mode(False), torch.enable_grad(), preserved_torch_state(device):
        if uses_device:
            gc.collect()  # what a cancelled step left in reference cycles may hold a whole model
            memory.unload_all_models()
            memory.soft_empty_cache()
        try:
            yield build_context(hidden=hidden, talk=talk)
            talk.raise_if_interrupted()
            talk.end("finished", "")
        except STOPS:
            talk.end("stopped", "")
            raise
        except BaseException as error:
            talk.end("failed", str(error))
            raise
        finally:
            if uses_device:
                gc.collect()
                memory.soft_empty_cache()


def call_stage(node_id: str, settings: Any, *, context: StepContext, **linked: Any) -> Any:
    """Do a node's work: on a GPU in a process of its own, which cannot take ComfyUI down and gives all memory back.

    Args:
        node_id: Key of NODE_STEPS.
        settings: The node's widgets.
        context: From `running_step`.
        linked: What its sockets got.
    """
    if context.device.type not in DEVICES_OF_CHILDREN:
        stage = NODE_STEPS[node_id].run
        assert stage is not None, f"{node_id} does nothing"
        return stage(settings, **linked, context=context)
    surroundings = {
        "output_dir": context.output_dir,
        "loras_dir": context.loras_dir,
        "device": str(context.device),
        "model_output_dirs": context.model_output_dirs,
        "roots": context.roots,
        "model_dirs": context.model_dirs,
        "workflow": context.workflow,
    }
    task = {"node": node_id, "settings": settings, "sockets": linked, "context": surroundings}
    answer = run_in_child(
        to_json(task), emit=context.emit, should_stop=context.should_stop, take_requests=context.take_requests
    )
    return from_json(answer)


class _Conversation:
    """What one execution of a node tells the browser, and what it hears from there."""

    def __init__(self, node_id: str | None) -> None:
        self.node_id = node_id or ""
        self.run = ""
        self.throttle = Throttle()
        self.bar: comfy.utils.ProgressBar | None = None
        self.is_interrupted = False

    def emit(self, event: Event) -> None:
        """Record the event and send it; of progress not every step, but always the last."""
        if event.kind == "forecast":  # of a run that another node will train, later
            RUNS.record_forecast(event.to_json())
            send(f"{RUNS_FOLDER}.{event.kind}", event.to_json())
            return
        self.run = event.run
        payload = {**event.to_json(), "node": self.node_id}
        if "images" in payload:
            payload["images"] = [view_of(runs_dir() / event.run / path) for path in payload["images"]]
        RUNS.record(event.kind, payload)
        if event.kind == "progress":
            self._move_bar(payload)
            if payload["step"] != payload["total"] and not self.throttle.allows():
                return
        send(f"{RUNS_FOLDER}.{event.kind}", payload)

    def should_stop(self) -> bool:
        """The user pressed Cancel, or Stop on the node."""
        return self.is_interrupted or memory.processing_interrupted() or RUNS.is_stop_requested(self.run)

    def take_requests(self, run: str) -> frozenset[Request]:
        return RUNS.take_requests(run)

    def raise_if_interrupted(self) -> None:
        """The host was told of the interruption by the progress bar, but the step ended by itself."""
        if self.is_interrupted:
            raise StopTraining

    def end(self, status: Status, message: str) -> None:
        """The step is over. The host itself says so, but of an interruption it tells only the page that queued."""
        if not self.run:
            return
        RUNS.end(self.run, status, message)
        if status == "stopped":
            send(f"{RUNS_FOLDER}.stopped", {"run": self.run, "node": self.node_id})

    def _move_bar(self, payload: Mapping[str, Any]) -> None:
        if self.is_interrupted:
            return
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(payload["total"], node_id=self.node_id)
        try:
            self.bar.update_absolute(payload["step"], payload["total"])
        except memory.InterruptProcessingException:
            # The host throws from within its progress bar and forgets the request; the step must end at a safe place.
            self.is_interrupted = True


def build_context(*, hidden: Any = None, talk: _Conversation | None = None) -> StepContext:
    """Folders and device of this host, for one execution of a node or for a check before it."""
    output_dir = Path(folder_paths.get_output_directory())
    talk = talk or _Conversation(None)
    return StepContext(
        output_dir=output_dir,
        loras_dir=Path(folder_paths.get_folder_paths("loras")[0]),
        model_output_dirs={kind: _output_folder(kind) for kind in BASE_KINDS},
        device=memory.get_torch_device(),
        roots=(Path(folder_paths.get_input_directory()), *_folders(DATASETS_KIND)),
        model_dirs={kind: _folders(kind) for kind in MODEL_KINDS},
        emit=talk.emit,
        should_stop=talk.should_stop,
        take_requests=talk.take_requests,
        workflow=_workflow_of(hidden),
    )


def _folders(kind: str) -> tuple[Path, ...]:
    if kind not in folder_paths.folder_names_and_paths:
        return ()
    return tuple(Path(path) for path in folder_paths.get_folder_paths(kind))


def _output_folder(kind: str) -> Path:
    """The folder of the kind's own name: the first one may be of an older name, such as unet for diffusion_models."""
    folders = _folders(kind)
    return next((folder for folder in folders if folder.name == kind), folders[0])


def _workflow_of(hidden: Any) -> str:
    graph = ((hidden and hidden.extra_pnginfo) or {}).get("workflow") or (hidden and hidden.prompt)
    return json.dumps(graph) if graph else ""


def runs_dir() -> Path:
    """Parent of all run folders."""
    return Path(folder_paths.get_output_directory()) / RUNS_FOLDER


def list_model_choices() -> dict[str, list[str]]:
    """Combo entries of Load Lumina2."""
    return {
        "base": [DEMO_BASE, *_model_names(BASE_KINDS)],
        "text_encoder": [FROM_BASE, *_model_names(TEXT_ENCODER_KINDS)],
        "vae": [FROM_BASE, *_model_names(VAE_KINDS)],
    }


def _model_names(kinds: Sequence[str]) -> list[str]:
    names: list[str] = []
    for kind in kinds:
        names += _diffusers_names() if kind == "diffusers" else folder_paths.get_filename_list(kind)
    return list(dict.fromkeys(names))


def _diffusers_names() -> list[str]:
    found = ((folder, index) for folder in _folders("diffusers") for index in folder.glob("*/**/model_index.json"))
    return sorted(index.parent.relative_to(folder).as_posix() for folder, index in found)


def fingerprint_models(names: Mapping[str, Any]) -> str:
    """Changes when one of the named model files is replaced by another under the same name."""
    context = build_context()
    kinds_of = {"base": BASE_KINDS, "text_encoder": TEXT_ENCODER_KINDS, "vae": VAE_KINDS}
    marks = []
    for what, kinds in kinds_of.items():
        try:
            path = context.find_model(kinds, str(names.get(what)), what)
        except TrainerError:  # "demo", "from base", or a name that the step itself will refuse
            path = DEMO_MODEL_PATH
        marks.append(_fingerprint(path.rglob("*") if path.is_dir() else [path]))
    return "|".join(marks)


def fingerprint_folder(folder: str | None, metadata_file: str | None = None, mask_folder: str | None = None) -> str:
    """Changes when a picture, mask or caption below a dataset folder is added, removed, renamed or written."""
    return fingerprint_dataset_folder(folder or "", build_context(), metadata_file or "", mask_folder or "")


def fingerprint_lora(name: str | None) -> str:
    """Changes when a file in models/loras is replaced by another under the same name."""
    if not name:
        return ""
    try:
        return _fingerprint([build_context().find_model(("loras",), name, "start_from")])
    except TrainerError:  # the step itself will say so
        return ""


def _fingerprint(paths: Iterable[Path]) -> str:
    stats = [path.stat() for path in paths if path.is_file()]
    newest = max((s.st_mtime_ns for s in stats), default=0)
    return f"{len(stats)}:{sum(s.st_size for s in stats)}:{newest}"


def check_dataset_folder(folder: str | None) -> None:
    """Refuse a folder that this machine can't or won't read; a linked folder is checked when it is read.

    Raises:
        ValueError: Why.
    """
    if folder is not None and folder != DEMO_FOLDER:
        with readable_errors():
            build_context().resolve_inside_roots(folder, "folder")


def view_of(path: Path) -> dict[str, str]:
    """Where the browser finds a picture in the output folder, for the host's /view."""
    inside = path.relative_to(folder_paths.get_output_directory())
    return {"filename": inside.name, "subfolder": inside.parent.as_posix(), "type": "output"}


def show_pictures(paths: Sequence[Path]) -> dict[str, Any]:
    """The ui value that shows picture files on the node."""
    return {"images": [view_of(path) for path in paths]}


def is_executing() -> bool:
    """Whether a prompt is being executed."""
    return bool(PromptServer.instance.prompt_queue.currently_running)


def server_routes() -> Any:
    """The host's route table, open until its server starts."""
    return PromptServer.instance.routes


def send(name: str, payload: Mapping[str, Any]) -> None:
    """Send a websocket message to every open page."""
    PromptServer.instance.send_sync(name, dict(payload))
