"""Fill the latent cache: every picture of a dataset, encoded once."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from ..context import StepContext
from ..errors import TrainerError
from .buckets import Bucket
from .cache import LatentCache
from .entries import entry_name, is_valid_entry, write_entry
from .folder import Dataset
from .images import PREPARATION_VERSION, UnreadablePicture, decode_picture, fit_to_bucket, to_pixels
from .index import LATENTS_FOLDER, LatentIndex, LatentSample, write_index
from .picture_index import NUM_READERS, read_content
from .progress import Progress
from .scan import Picture, scan_dataset

logger = logging.getLogger(__name__)

RUN = "cache_latents"
LATENT_CHANNELS = 16
PIXELS_PER_LATENT = 8

PixelEncoder = Callable[[Tensor], Tensor]
"""[B, 3, H, W] pixels in [-1, 1] to [B, 16, H / 8, W / 8] latents, float32, scaled for the network."""


def fill_latent_cache(
    dataset: Dataset,
    *,
    load_encoder: Callable[[], PixelEncoder],
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
        batch_size: Pictures of equal size encoded at once.
        context: Where the cache lies, and whom to tell.

    Raises:
        StopTraining: The user asked to stop; what was encoded so far is reused next time.
        TrainerError: A picture changed meanwhile, or its latents are not finite.
    """
    folder = context.cache_dir / LATENTS_FOLDER
    pictures = scan_dataset(dataset, context).pictures
    names = {p.id: _name_entry(p, encoder_fingerprint, dtype) for p in pictures}
    wanted = {names[p.id]: p for p in pictures}  # pictures of equal content and bucket share an entry
    missing = {n: p for n, p in wanted.items() if not is_valid_entry(folder / n, _latent_shape(p.bucket), dtype)}
    logger.info("Latents: %d of %d cached, %d to encode", len(wanted) - len(missing), len(wanted), len(missing))
    progress = Progress(RUN, total=len(wanted), num_done=len(wanted) - len(missing), context=context)
    if missing:
        _encode(missing, folder, load_encoder, dtype, batch_size, progress)
    else:
        progress.advance(0)
    index = LatentIndex(
        cache_dir=context.cache_dir,
        folders=tuple(folder.settings for folder in dataset.folders),
        samples=tuple(_describe_sample(picture, names[picture.id]) for picture in pictures),
    )
    return LatentCache(index_path=str(write_index(index)), fingerprint=index.fingerprint)


def _name_entry(picture: Picture, encoder_fingerprint: str, dtype: torch.dtype) -> str:
    bucket = picture.bucket
    facts = (picture.facts.content_hash, bucket.width, bucket.height, encoder_fingerprint, str(dtype))
    return entry_name(LATENTS_FOLDER, PREPARATION_VERSION, *facts)


def _latent_shape(bucket: Bucket) -> tuple[int, int, int]:
    return LATENT_CHANNELS, bucket.height // PIXELS_PER_LATENT, bucket.width // PIXELS_PER_LATENT


def _describe_sample(picture: Picture, name: str) -> LatentSample:
    return LatentSample(
        id=picture.id,
        file_name=picture.path.name,
        latents=name,
        width=picture.bucket.width,
        height=picture.bucket.height,
        repeats=picture.repeats,
        content_hash=picture.facts.content_hash,
    )


def _encode(
    missing: Mapping[str, Picture],
    folder: Path,
    load_encoder: Callable[[], PixelEncoder],
    dtype: torch.dtype,
    batch_size: int,
    progress: Progress,
) -> None:
    progress.stop_if_asked()
    batches = _make_batches(missing, batch_size)
    encode = load_encoder()
    try:
        with closing(_load_ahead([p for batch in batches for _, p in batch], 2 * batch_size)) as pixels:
            for batch in batches:
                progress.stop_if_asked()
                latents_BCHW = encode(torch.stack([next(pixels) for _ in batch])).to("cpu", torch.float32)
                for (name, picture), latents_CHW in zip(batch, latents_BCHW, strict=True):
                    _check_latents(latents_CHW, picture)
                    write_entry(folder / name, latents_CHW.to(dtype))
                progress.advance(len(batch))
    finally:
        del encode  # an error's traceback would keep the VAE on the device


def _make_batches(missing: Mapping[str, Picture], batch_size: int) -> list[list[tuple[str, Picture]]]:
    """Pictures of one bucket together, the last batch of a bucket as short as it comes."""
    by_bucket: dict[Bucket, list[tuple[str, Picture]]] = defaultdict(list)
    for name, picture in missing.items():
        by_bucket[picture.bucket].append((name, picture))
    return [group[i : i + batch_size] for group in by_bucket.values() for i in range(0, len(group), batch_size)]


def _load_ahead(pictures: list[Picture], num_ahead: int) -> Generator[Tensor, None, None]:
    """Pixels in order, read by other threads while the encoder works; at most `num_ahead` pictures wait."""
    pool = ThreadPoolExecutor(NUM_READERS)
    waiting: deque[Future[Tensor]] = deque()
    try:
        for picture in pictures:
            waiting.append(pool.submit(_load_pixels, picture))
            if len(waiting) >= num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load_pixels(picture: Picture) -> Tensor:
    """[3, H, W] of the very content that names the entry."""
    try:
        content, content_hash = read_content(picture.path)
        if content_hash != picture.facts.content_hash:
            raise UnreadablePicture("it is not what it was when the folder was listed")
        return to_pixels(fit_to_bucket(decode_picture(content).image, picture.bucket))
    except UnreadablePicture as error:
        raise TrainerError(f"{picture.id} changed while latents were cached ({error}): queue it again") from error


def _check_latents(latents_CHW: Tensor, picture: Picture) -> None:
    if tuple(latents_CHW.shape) != _latent_shape(picture.bucket):
        raise TrainerError(
            f"the VAE gave latents of shape {tuple(latents_CHW.shape)} for a picture of {picture.bucket} pixels,"
            f" Lumina2 needs {_latent_shape(picture.bucket)}: choose the Flux VAE"
        )
    if not latents_CHW.isfinite().all():
        raise TrainerError(f"the VAE gave latents that are not finite for {picture.id}: set precision to fp32")
