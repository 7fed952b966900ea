"""Fill the latent cache: every picture of a dataset, encoded once."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..context import StepContext
from ..errors import TrainerError
from .cache import LatentCache
from .cache_masks import fill_mask_cache
from .entries import AUTOMATIC_BATCH_SIZE, EntryWriter, NewEntry, entry_name, is_valid_entry
from .folder import Dataset
from .images import PREPARATION_VERSION, UnreadablePicture, decode_picture, fit_to_bucket, to_picture_tensor
from .index import LATENTS_FOLDER, LatentIndex, LatentSample, folder_number, write_index
from .picture_index import NUM_READERS, read_content
from .progress import Progress
from .scan import Picture, scan_dataset
from .sizing import Box, Bucket, crop_box

logger = logging.getLogger(__name__)

RUN = "cache_latents"
LATENT_CHANNELS = 16
PIXELS_PER_LATENT = 8


class PictureEncoder(Protocol):
    """What the latent cache needs of a VAE."""

    def encode(self, pictures_B3HW: Tensor, /) -> Tensor:
        """[B, 3, H, W] uint8 on the CPU to [B, 16, H / 8, W / 8] float32 latents scaled for the network."""
        ...

    def choose_batch_size(self, width: int, height: int, /) -> int:
        """How many pictures of a size, in pixels, to encode at once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of a picture that becomes an entry."""

    picture: Picture
    box: Box
    name: str
    """Of the entry."""


Batch = list[Crop]
"""Crops of one bucket."""


def fill_latent_cache(
    dataset: Dataset,
    *,
    load_encoder: Callable[[], PictureEncoder],
    encoder_fingerprint: str,
    dtype: torch.dtype,
    batch_size: int,
    context: StepContext,
) -> LatentCache:
    """Encode the pictures that have no entry yet, and write the index.

    Args:
        dataset: Its pictures are encoded in their buckets.
        load_encoder: Loads the VAE; called only if something is to be encoded.
        encoder_fingerprint: Identifies the VAE's weights and how it computes.
        dtype: In which latents are kept. Beside a bfloat16 VAE and network bfloat16 loses nothing that they would keep,
            in half the space; beside float32 ones latents are kept exactly.
        batch_size: Pictures of equal size encoded at once, or AUTOMATIC_BATCH_SIZE. It changes no entry's name.
        context: Where the cache lies, and whom to tell.

    Raises:
        StopTraining: The user asked to stop; what was encoded so far is reused next time.
        TrainerError: A picture changed meanwhile, or its latents are not finite.
    """
    folder = context.cache_dir / LATENTS_FOLDER
    pictures = scan_dataset(dataset, context).pictures
    crops = {p.id: [_name_crop(p, box, encoder_fingerprint, dtype) for box in p.boxes] for p in pictures}
    wanted = {c.name: c for of_one in crops.values() for c in of_one}  # equal crops of equal content share an entry
    missing = [
        crop
        for crop in wanted.values()
        if not is_valid_entry(folder / crop.name, _latent_shape(crop.picture.bucket), dtype)
    ]
    logger.info("Latents: %d of %d cached, %d to encode", len(wanted) - len(missing), len(wanted), len(missing))
    progress = Progress(RUN, total=len(wanted), num_done=len(wanted) - len(missing), context=context)
    processes = context.processes
    processes.wait()  # until all have seen the same entries missing
    with processes.failing_together():
        own = processes.share(missing)
        if own:
            _encode(own, folder, load_encoder, dtype, batch_size, progress)
        else:
            progress.advance(0)
    needs_white = [_needs_white(picture, dataset) for picture in pictures]
    masks = processes.from_main(lambda: fill_mask_cache(pictures, folder, context.alone, needs_white=needs_white))
    index = LatentIndex(
        cache_dir=context.cache_dir,
        folders=tuple(folder.settings for folder in dataset.folders),
        samples=tuple(_describe_sample(picture, crops[picture.id], masks.get(picture.id, ())) for picture in pictures),
    )
    path = processes.from_main(lambda: write_index(index))
    return LatentCache(index_path=str(path), fingerprint=index.fingerprint)


def _name_crop(picture: Picture, box: Box, encoder_fingerprint: str, dtype: torch.dtype) -> Crop:
    facts, bucket = picture.facts, picture.bucket
    identity: list[str | int] = [facts.content_hash, bucket.width, bucket.height, encoder_fingerprint, str(dtype)]
    if box != crop_box(facts.width, facts.height, bucket):
        identity += [f"{side:.3f}" for side in box]
    return Crop(picture=picture, box=box, name=entry_name(LATENTS_FOLDER, PREPARATION_VERSION, *identity))


def _latent_shape(bucket: Bucket) -> tuple[int, int, int]:
    return LATENT_CHANNELS, bucket.height // PIXELS_PER_LATENT, bucket.width // PIXELS_PER_LATENT


def _needs_white(picture: Picture, dataset: Dataset) -> bool:
    """Whether its mask decides alone what is learned."""
    return dataset.folders[folder_number(picture.id) - 1].settings.mask_outside_weight == 0


def _describe_sample(picture: Picture, crops: Sequence[Crop], masks: tuple[str, ...]) -> LatentSample:
    return LatentSample(
        id=picture.id,
        file_name=picture.path.name,
        latents=crops[0].name,
        more_latents=tuple(crop.name for crop in crops[1:]),
        width=picture.bucket.width,
        height=picture.bucket.height,
        repeats=picture.repeats,
        content_hash=picture.facts.content_hash,
        masks=masks,
    )


def _encode(
    missing: Sequence[Crop],
    folder: Path,
    load_encoder: Callable[[], PictureEncoder],
    dtype: torch.dtype,
    batch_size: int,
    progress: Progress,
) -> None:
    progress.stop_if_asked()
    encoder = load_encoder()
    try:
        batches = _make_batches(missing, batch_size, encoder)
        loaded = _load_ahead(batches)
        with closing(loaded), EntryWriter(dtype, progress) as writer:
            for batch in batches:
                progress.stop_if_asked(writer.finish)
                pictures_BHW3 = torch.stack([next(loaded).permute(1, 2, 0) for _ in batch])  # channels stay last
                latents_BCHW = encoder.encode(pictures_BHW3.permute(0, 3, 1, 2))
                _check_shape(latents_BCHW, batch[0].picture)
                writer.write(latents_BCHW.unbind(), [_new_entry(folder, crop) for crop in batch])
    finally:
        del encoder  # an error's traceback would keep the VAE on the device


def _make_batches(missing: Sequence[Crop], batch_size: int, encoder: PictureEncoder) -> list[Batch]:
    """Pictures of one bucket together, the last batch of a bucket as short as it comes."""
    by_bucket: dict[Bucket, Batch] = defaultdict(list)
    for crop in missing:
        by_bucket[crop.picture.bucket].append(crop)
    batches = []
    for bucket, group in by_bucket.items():
        is_chosen = batch_size != AUTOMATIC_BATCH_SIZE
        count = batch_size if is_chosen else encoder.choose_batch_size(bucket.width, bucket.height)
        batches += [group[i : i + count] for i in range(0, len(group), count)]
    return batches


def _load_ahead(batches: Sequence[Batch]) -> Generator[Tensor, None, None]:
    """Pictures in order, read by other threads while the encoder works; a bounded number waits."""
    num_ahead = NUM_READERS + 2 * max(map(len, batches))
    pool = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="picture-reader")
    waiting: deque[Future[Tensor]] = deque()
    try:
        for crop in itertools.chain(*batches):
            waiting.append(pool.submit(_load_crop, crop))
            if len(waiting) >= num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load_crop(crop: Crop) -> Tensor:
    """[3, H, W] uint8 of the very content that names the entry."""
    picture = crop.picture
    try:
        content, content_hash = read_content(picture.path)
        if content_hash != picture.facts.content_hash:
            raise UnreadablePicture("it is not what it was when the folder was listed")
        return to_picture_tensor(fit_to_bucket(decode_picture(content).image, picture.bucket, box=crop.box))
    except UnreadablePicture as error:
        raise TrainerError(f"{picture.id} changed while latents were cached ({error}): queue it again") from error


def _check_shape(latents_BCHW: Tensor, picture: Picture) -> None:
    if tuple(latents_BCHW.shape[1:]) != _latent_shape(picture.bucket):
        raise TrainerError(
            f"the VAE gave latents of shape {tuple(latents_BCHW.shape[1:])} for a picture of {picture.bucket} pixels,"
            f" Lumina2 needs {_latent_shape(picture.bucket)}: choose the Flux VAE"
        )


def _new_entry(folder: Path, crop: Crop) -> NewEntry:
    problem = f"the VAE gave latents that are not finite for {crop.picture.id}: set precision to fp32"
    return NewEntry(path=folder / crop.name, problem=problem)
