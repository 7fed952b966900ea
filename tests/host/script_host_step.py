"""Runs steps as nodes do, inside a host's process, and tells what they met."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import sys
import types
import weakref
from pathlib import Path
from typing import Any


def main(datasets_dir: str) -> dict[str, Any]:
    """Facts by name; see test_pack_host.py for what they should be."""
    importlib.import_module("utils.extra_config")  # as main.py does: nodes.py hides this package behind a file
    importlib.import_module("nodes")
    server = importlib.import_module("server").PromptServer(asyncio.new_event_loop())
    server.send_sync = lambda *args: SENT.append(args[:2])
    importlib.import_module("folder_paths").add_model_folder_path("lumina2_datasets", datasets_dir)
    return {
        **what_a_step_meets(),
        **how_errors_come_out(),
        **how_an_interruption_ends(),
        **what_is_sent(),
        **what_changes_a_folder(Path(datasets_dir)),
        **what_changes_a_lora(),
        **what_changes_a_cache(),
    }


SENT: list[tuple[str, dict]] = []
HIDDEN = types.SimpleNamespace(unique_id="7", extra_pnginfo={"workflow": {"nodes": []}}, prompt=None)


def what_a_step_meets() -> dict[str, Any]:
    import comfy.model_management as memory
    import comfy.model_patcher
    import torch
    from lumina2_trainer.nodes import host

    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(torch.nn.Linear(4, 4), load_device=cpu, offload_device=cpu)
    memory.load_models_gpu([patcher])
    loaded_before = len(memory.current_loaded_models)
    gc.disable()
    garbage = weakref.ref(_make_cycle())
    torch.manual_seed(1)
    expected = torch.rand(1).item()
    torch.manual_seed(1)
    with torch.inference_mode():
        with host.running_step(HIDDEN) as context:
            inside = [torch.is_inference_mode_enabled(), torch.is_grad_enabled()]
            loaded_inside = len(memory.current_loaded_models)
            is_garbage_alive = garbage() is not None
            gc.enable()
            torch.set_default_dtype(torch.float64)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(99)
        after = torch.is_inference_mode_enabled()
    return {
        "modes": [*inside, after],
        "loaded": [loaded_before, loaded_inside],
        "is_garbage_alive": is_garbage_alive,
        "dtype": str(torch.get_default_dtype()),
        "is_deterministic": torch.are_deterministic_algorithms_enabled(),
        "has_same_draw": torch.rand(1).item() == expected,
        "roots": [str(root) for root in context.roots],
        "workflow": context.workflow,
    }


def _make_cycle() -> Any:
    """Something that only a garbage collection frees, as what a cancelled step leaves behind may be."""
    import torch

    cycle = torch.nn.Linear(4, 4)
    cycle.itself = [cycle]
    return cycle


def how_errors_come_out() -> dict[str, Any]:
    from lumina2_trainer.nodes import host
    from lumina2_trainer.trainer_core.errors import TrainerError

    def mistake() -> None:
        raise TrainerError("rank is 0: it must be at least 1")

    def missing_library() -> None:
        sys.modules["peft"] = None  # type: ignore[assignment]
        importlib.import_module("peft")

    return {"mistake": _outcome(host, mistake), "missing_library": _outcome(host, missing_library)}


def _outcome(host: Any, action: Any) -> list[str]:
    try:
        with host.running_step(HIDDEN):
            action()
    except BaseException as error:
        return [type(error).__name__, str(error)]
    return []


def how_an_interruption_ends() -> dict[str, Any]:
    import comfy.model_management as memory
    import comfy.utils
    from lumina2_trainer.nodes import host
    from lumina2_trainer.trainer_core.events import Event

    def hook(*args: Any, **kwargs: Any) -> None:
        memory.throw_exception_if_processing_interrupted()

    comfy.utils.set_progress_bar_global_hook(hook)
    asked: list[bool] = []

    def step_of_a_run() -> None:
        with host.running_step(HIDDEN) as context:
            memory.interrupt_current_processing()
            context.emit(Event(kind="progress", run="interrupted", data={"step": 1, "total": 9}))
            asked.append(context.should_stop())

    try:
        step_of_a_run()
    except memory.InterruptProcessingException:
        ended = "interrupted"
    else:
        ended = "went on"
    return {"should_stop": asked, "interruption": ended, "is_still_asked": memory.processing_interrupted()}


def what_is_sent() -> dict[str, Any]:
    from lumina2_trainer.nodes import host
    from lumina2_trainer.trainer_core.events import Event

    SENT.clear()
    with host.running_step(HIDDEN) as context:
        for step in range(1, 1001):
            context.emit(Event(kind="progress", run="fast", data={"step": step, "total": 1000}))
        data = {"step": 1000, "images": ["samples/step-001000/00.png"]}
        context.emit(Event(kind="validation", run="fast", data=data))
    steps = [payload["step"] for name, payload in SENT if name == "lumina2_trainer.progress"]
    validation = next(payload for name, payload in SENT if name == "lumina2_trainer.validation")
    return {"first_and_last": [steps[0], steps[-1]], "num_sent": len(steps), "validation": validation}


def what_changes_a_folder(datasets_dir: Path) -> dict[str, Any]:
    """Fingerprints of a dataset folder that no count, sum of sizes or newest time tells apart."""
    from lumina2_trainer.nodes import host

    folder = datasets_dir / "changing"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(b"0")
        (folder / f"{name}.txt").write_text(f"{name} caption longer by {name}", "utf-8")
    os.utime(folder / "a.txt", (1, 1))
    fingerprints = [host.fingerprint_folder(str(folder)) for _ in range(2)]
    (folder / "a.txt").rename(folder / "c.txt")
    (folder / "b.txt").rename(folder / "a.txt")
    (folder / "c.txt").rename(folder / "b.txt")
    fingerprints.append(host.fingerprint_folder(str(folder)))
    (folder / "a.png").rename(folder / "d.png")
    fingerprints.append(host.fingerprint_folder(str(folder)))
    return {"folder_fingerprints": fingerprints}


def what_changes_a_lora() -> dict[str, Any]:
    """Fingerprints of a file in models/loras that is missing, written and replaced."""
    import folder_paths
    from lumina2_trainer.nodes import host

    path = Path(folder_paths.get_folder_paths("loras")[0]) / "lumina2_trainer_test.safetensors"
    fingerprints = [host.fingerprint_lora(""), host.fingerprint_lora(path.name)]
    try:
        for content in (b"1", b"22"):
            path.write_bytes(content)
            fingerprints.append(host.fingerprint_lora(path.name))
    finally:
        path.unlink(missing_ok=True)
    return {"lora_fingerprints": fingerprints}


def what_changes_a_cache() -> dict[str, Any]:
    """Counts before and after a step found latents damaged."""
    from lumina2_trainer.nodes import file_watch, host
    from lumina2_trainer.trainer_core.errors import CacheDamagedError

    def damage() -> None:
        raise CacheDamagedError("an entry is gone: queue Cache Latents again", cache="latents")

    def count() -> list[int]:
        return [file_watch.count_lost_caches(folder) for folder in ("latents", "text_embeds")]

    before = count()
    outcome = _outcome(host, damage)
    return {"damage": outcome, "lost_caches": [before, count()]}
