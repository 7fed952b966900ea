"""The processes of the start-up benchmark: making caches, a bare interpreter, and a run to its first step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE_LINK = "base.safetensors"
PICTURES_FOLDER = "pictures"
RESOLUTION_FILE = "resolution.txt"
CACHES_FILE = "caches.json"
OUTPUT_FOLDER = "output"


def prepare(work: Path, base: Path, num_pictures: int, *, is_tiny: bool) -> None:
    """Write pictures and link the base, for the processes to come.

    Args:
        work: Folder of the benchmark's run.
        base: An all-in-one file.
        num_pictures: How many.
        is_tiny: Pictures of 128 instead of 1024 pixels.
    """
    from .pictures import PHOTO_SIZES, TINY_SIZES, write_photos

    write_photos(work / PICTURES_FOLDER, num_pictures, TINY_SIZES if is_tiny else PHOTO_SIZES)
    (work / RESOLUTION_FILE).write_text("128" if is_tiny else "1024", encoding="utf-8")
    (work / BASE_LINK).symlink_to(base.resolve())


def make_caches(work: Path, precision: str, started: float) -> dict[str, Any]:
    """Cache Latents and Cache Text Embeds on the pictures.

    Args:
        work: Folder of the benchmark's run.
        precision: Of the base.
        started: Time before this process.

    Returns:
        Seconds.
    """
    place = _open_workplace(work, precision)
    context = place.context(work / OUTPUT_FOLDER)
    latents = place.cache_latents(work / PICTURES_FOLDER, context)
    embeds = place.cache_text_embeds(work / PICTURES_FOLDER, context)
    caches = {"latents": vars(latents), "embeds": vars(embeds)}
    (work / CACHES_FILE).write_text(json.dumps(caches), encoding="utf-8")
    return {"seconds": time.time() - started}


def start_interpreter(work: Path, precision: str, started: float) -> dict[str, Any]:
    """Import torch and use the GPU, as any training must.

    Returns:
        Most host memory in GiB.
    """
    import torch

    torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    return {"peak_gib": _peak_host_gib()}


def train_first_step(work: Path, precision: str, started: float) -> dict[str, Any]:
    """Train LoRA with its own defaults, stopped after its first step.

    Returns:
        Seconds since `started` when the steps were imported, when the base was checked and when the first step was
        done, that step's own seconds, and the most host memory in GiB until then.
    """
    from lumina2_trainer.trainer_core.data.cache import EmbedCache, LatentCache
    from lumina2_trainer.trainer_core.errors import StopTraining
    from lumina2_trainer.trainer_core.events import Event
    from lumina2_trainer.trainer_core.run.job import TrainLoRASettings
    from lumina2_trainer.trainer_core.stages import train

    result = {"imported": time.time() - started}

    def emit(event: Event) -> None:
        if event.kind == "progress" and "first_step" not in result:
            result["first_step"] = time.time() - started
            result["step_seconds"] = event.data["seconds_per_step"]
            result["peak_gib"] = _peak_host_gib()

    place = _open_workplace(work, precision)
    # A folder of its own: a run that stopped before would be resumed.
    context = place.context(work / f"run-{time.time_ns()}", emit, should_stop=lambda: "first_step" in result)
    caches = json.loads((work / CACHES_FILE).read_text("utf-8"))
    model = place.load(context)
    result["checked"] = time.time() - started
    try:
        train.train_lora(
            TrainLoRASettings(run_name="start-up"),
            model=model,
            latents=LatentCache(**caches["latents"]),
            embeds=EmbedCache(**caches["embeds"]),
            context=context,
        )
    except StopTraining:
        return result
    raise AssertionError("training ended by itself")


PARTS: dict[str, Callable[[Path, str, float], dict[str, Any]]] = {
    "caches": make_caches,
    "interpreter": start_interpreter,
    "first-step": train_first_step,
}
"""What a process of this benchmark does, by name."""


def _open_workplace(work: Path, precision: str) -> Any:
    import torch

    from .workplace import Workplace

    return Workplace(
        base_path=work / BASE_LINK,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        resolution=int((work / RESOLUTION_FILE).read_text("utf-8")),
        precision=precision,
    )


def _peak_host_gib() -> float:
    """Most host memory of this process that was resident at once, in GiB."""
    import torch
    from lumina2_trainer.trainer_core.device import peak_memory_gib

    return peak_memory_gib(torch.device("cpu"))
