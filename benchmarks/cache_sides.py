"""The two sides of the cache benchmark: this project's steps and plain loops, on the same files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.trainer_core.data.cache import (
    EmbedCache,
    LatentCache,
    load_embeds,
    load_latents,
    read_embed_index,
    read_latent_index,
)
from lumina2_trainer.trainer_core.lumina2.models.base_files import DEMO_MODEL_PATH
from safetensors.torch import load_file
from torch import Tensor

from .base_file import ensure_base_file
from .pictures import PHOTO_SIZES, TINY_SIZES, write_photos
from .plain_caches import encode_captions, encode_pictures
from .workplace import Workplace

BASE_LINK = "base.safetensors"
SHORT, LONG = "short", "long"
INDEX = "index.txt"
MAX_DIFFERENCE = 0.005
"""As a share of the norm. Cache entries are bfloat16, which alone makes about 0.002."""

Cache = Callable[[Path, Path], None]
"""Encodes a folder of pictures into another folder."""


def prepare(
    work: Path, base_folder: Path, counts: dict[str, int], short_share: int, num_layers: int, is_tiny: bool
) -> None:
    """Write pictures, captions and the base that every side reads.

    Args:
        work: Folder of this run.
        base_folder: Where the base is kept.
        counts: Length of the long data set by kind.
        short_share: The long data set is so many times as long as the short one.
        num_layers: Of the base's transformer.
        is_tiny: Small pictures and the demo's base.
    """
    for kind, count in counts.items():
        sizes = TINY_SIZES if is_tiny or kind == "embeds" else PHOTO_SIZES  # captions need no large pictures
        for length, number in ((SHORT, count // short_share), (LONG, count)):
            write_photos(work / kind / length, number, sizes)
    base = DEMO_MODEL_PATH if is_tiny else ensure_base_file(base_folder, num_layers=num_layers)
    (work / BASE_LINK).symlink_to(base.resolve())


def measure_side(kind: str, side: str, work: Path, resolution: int) -> dict[str, Any]:
    """Encode the short and the long data set after a warm-up, in this process.

    Args:
        kind: "latents" or "embeds".
        side: Key of SIDES[kind].
        work: From `prepare`.
        resolution: Side in pixels of the square of equal area.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cache = SIDES[kind][side](work / BASE_LINK, device, resolution)
    folder, outputs = work / kind, work / "outputs" / kind / side
    cache(folder / SHORT, outputs / "warmup")  # imports, and what libraries set up once
    seconds = {}
    for length in (SHORT, LONG):
        started = time.perf_counter()
        cache(folder / length, outputs / length)
        seconds[length] = time.perf_counter() - started
    count, num_short = (len(list((folder / length).glob("*.txt"))) for length in (LONG, SHORT))
    return {
        "count": count,
        "total": seconds[LONG],
        "per_second": (count - num_short) / (seconds[LONG] - seconds[SHORT]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
    }


def _our_latents(base: Path, device: torch.device, resolution: int) -> Cache:
    place = Workplace(base_path=base, device=device, resolution=resolution, precision="bf16")

    def cache(folder: Path, output_dir: Path) -> None:
        index = place.cache_latents(folder, place.context(output_dir)).index_path
        (output_dir / INDEX).write_text(index, encoding="utf-8")

    return cache


def _our_embeds(base: Path, device: torch.device, resolution: int) -> Cache:
    place = Workplace(base_path=base, device=device, resolution=resolution, precision="bf16")

    def cache(folder: Path, output_dir: Path) -> None:
        index = place.cache_text_embeds(folder, place.context(output_dir)).index_path
        (output_dir / INDEX).write_text(index, encoding="utf-8")

    return cache


def _plain_latents(dtype: torch.dtype, base: Path, device: torch.device, resolution: int) -> Cache:
    return partial(encode_pictures, base, resolution=resolution, dtype=dtype, device=device)


def _plain_embeds(dtype: torch.dtype, base: Path, device: torch.device, resolution: int) -> Cache:
    return partial(encode_captions, base, dtype=dtype, device=device)


SIDES: dict[str, dict[str, Callable[[Path, torch.device, int], Cache]]] = {
    "latents": {
        "plain": partial(_plain_latents, torch.float32),
        "plain-bf16": partial(_plain_latents, torch.bfloat16),
        "ours": _our_latents,
    },
    "embeds": {
        "plain": partial(_plain_embeds, torch.float32),
        "plain-bf16": partial(_plain_embeds, torch.bfloat16),
        "ours": _our_embeds,
    },
}
"""By kind and side, the side that ours is compared with first; each takes base, device and resolution."""


def compare_outputs(kind: str, work: Path) -> float:
    """Largest difference of a picture's or caption's output between the sides, as a share of its norm."""
    outputs = work / "outputs" / kind
    plain_dir = outputs / "plain" / LONG
    index_path = (outputs / "ours" / LONG / INDEX).read_text("utf-8")
    errors = []
    for file_name, ours in OUR_OUTPUTS[kind](index_path):
        (plain,) = load_file(plain_dir / f"{file_name}.safetensors").values()
        errors.append(float((ours - plain.float()).norm() / plain.float().norm()))
    assert len(errors) == len(os.listdir(plain_dir)), "the sides encoded different pictures"
    return max(errors)


def _read_our_latents(index_path: str) -> Iterator[tuple[str, Tensor]]:
    index = read_latent_index(LatentCache(index_path=index_path, fingerprint=""))
    return ((sample.file_name, load_latents(index.path_of(sample))) for sample in index.samples)


def _read_our_embeds(index_path: str) -> Iterator[tuple[str, Tensor]]:
    index = read_embed_index(EmbedCache(index_path=index_path, fingerprint=""))
    return ((Path(sample.id).name, load_embeds(index.path_of(sample))) for sample in index.samples)


OUR_OUTPUTS: dict[str, Callable[[str], Iterator[tuple[str, Tensor]]]] = {
    "latents": _read_our_latents,
    "embeds": _read_our_embeds,
}
"""File name and tensor of every sample of a cache, by kind."""
