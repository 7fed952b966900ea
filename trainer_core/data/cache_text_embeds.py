"""Fill the text cache: every caption and prompt, encoded once."""

from __future__ import annotations

import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..context import StepContext
from ..errors import TrainerError
from .cache import EmbedCache
from .captions import clean_trigger_words, is_valid_text
from .entries import AUTOMATIC_BATCH_SIZE, EntryWriter, NewEntry, entry_name, is_valid_entry, read_notes
from .folder import Dataset
from .index import EMBEDS_FOLDER, EmbedIndex, EmbedSample, write_index
from .progress import Progress
from .scan import Picture, scan_dataset

logger = logging.getLogger(__name__)

RUN = "cache_text_embeds"
ENCODING_VERSION = 1
"""Raise it when the same prompt gives other embeddings than before, so that cached ones are redone."""
UNCONDITIONAL = ""
NAMES_IN_MESSAGE = 5


class PromptEncoder(Protocol):
    """What the text cache needs of a text encoder."""

    @property
    def max_batch_tokens(self) -> int:
        """Tokens, with padding, to encode at once."""
        ...

    def count_tokens(self, prompt: str, /) -> int:
        """Tokens of a prompt before it is cut to the encoder's limit."""
        ...

    def encode_batches(self, batches: list[list[str]], check: Callable[[], None], /) -> Iterator[list[Tensor]]:
        """[tokens, width] float32 of each prompt of each batch, without padding.

        How many batches are worked on at once is the encoder's choice; it calls `check`, which may raise, meanwhile.
        """
        ...

    def describe_differences(self, prompts: list[str], /) -> list[str]:
        """A sentence for each prompt that ComfyUI encodes differently."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """What is encoded beside the captions, and what is put before them."""

    system_prompt: str
    """Kept in the index."""
    build_prompt: Callable[[str], str]
    """Puts the system prompt before a caption or a validation prompt."""
    validation_prompts: tuple[str, ...] = ()
    """As typed; encoded with the system prompt."""
    negative_prompt: str = ""
    """As typed; encoded bare."""


def fill_embed_cache(
    dataset: Dataset,
    plan: PromptPlan,
    *,
    load_encoder: Callable[[], PromptEncoder],
    encoder_fingerprint: str,
    dtype: torch.dtype,
    batch_size: int,
    context: StepContext,
) -> EmbedCache:
    """Encode the captions and prompts that have no entry yet, and write the index.

    Args:
        dataset: Its captions are encoded.
        plan: Prompts beside the captions.
        load_encoder: Loads Gemma2; called only if something is to be encoded.
        encoder_fingerprint: Identifies its weights, attention and token limit.
        dtype: In which embeddings are kept; bfloat16 is what a bfloat16 network would round them to anyway.
        batch_size: Most prompts encoded at once, or AUTOMATIC_BATCH_SIZE. It changes no entry's name.
        context: Where the cache lies, and whom to tell.

    Raises:
        StopTraining: The user asked to stop; what was encoded so far is reused next time.
        TrainerError: A picture has no caption, or an embedding is not finite.
    """
    folder = context.cache_dir / EMBEDS_FOLDER
    pictures = scan_dataset(dataset, context).pictures
    check_captions(pictures)
    captions = {p.id: [plan.build_prompt(text) for text in p.caption.texts] for p in pictures}
    prompts = {prompt: plan.build_prompt(prompt) for prompt in plan.validation_prompts}
    bare = [UNCONDITIONAL, plan.negative_prompt]
    names = {
        text: entry_name(EMBEDS_FOLDER, ENCODING_VERSION, text, encoder_fingerprint, str(dtype))
        for text in (*itertools.chain(*captions.values()), *prompts.values(), *bare)
    }
    _fill(names, folder, load_encoder, dtype, batch_size, context)
    index = EmbedIndex(
        cache_dir=context.cache_dir,
        samples=tuple(_describe_sample(p, [names[text] for text in captions[p.id]]) for p in pictures),
        prompts={prompt: folder / names[text] for prompt, text in prompts.items()},
        negative_prompts={text: folder / names[text] for text in bare},
        system_prompt=plan.system_prompt,
        trigger_words=_join_trigger_words(dataset),
    )
    path = context.processes.from_main(lambda: write_index(index))
    return EmbedCache(index_path=str(path), fingerprint=index.fingerprint)


def check_captions(pictures: Sequence[Picture]) -> None:
    """Every picture must have a caption.

    Raises:
        TrainerError: Some have none.
    """
    without = [picture for picture in pictures if picture.caption.problem]
    if without:
        first = "; ".join(f"{p.id}: {p.caption.problem}" for p in without[:NAMES_IN_MESSAGE])
        raise TrainerError(
            f"{len(without)} of {len(pictures)} pictures have no caption: add them or change caption_source;"
            f" {first}{'; ...' if len(without) > NAMES_IN_MESSAGE else ''}"
        )


def _join_trigger_words(dataset: Dataset) -> str:
    words = (clean_trigger_words(folder.settings.trigger_words) for folder in dataset.folders)
    return ", ".join(dict.fromkeys(word for word in words if word))


def _describe_sample(picture: Picture, names: Sequence[str]) -> EmbedSample:
    return EmbedSample(
        id=picture.id,
        content_hash=picture.facts.content_hash,
        captions=picture.caption.texts,
        embeds=tuple(names),
    )


def _fill(
    names: Mapping[str, str],
    folder: Path,
    load_encoder: Callable[[], PromptEncoder],
    dtype: torch.dtype,
    batch_size: int,
    context: StepContext,
) -> None:
    """Make sure that every text has its entry, and log what ComfyUI encodes differently, cached or not."""
    for text in names:
        if not is_valid_text(text):
            raise TrainerError(f"the prompt {text!r} holds half of a character: type it again")
    missing = [text for text, name in names.items() if not is_valid_entry(folder / name, (None, None), dtype)]
    num_cached = len(names) - len(missing)
    logger.info("Text embeds: %d of %d cached, %d to encode", num_cached, len(names), len(missing))
    progress = Progress(RUN, total=len(names), num_done=num_cached, context=context)
    processes = context.processes
    processes.wait()  # until all have seen the same entries missing
    with processes.failing_together():
        own = processes.share(missing)
        if own:
            _encode(own, names, folder, load_encoder, dtype, batch_size, progress)
        else:
            progress.advance(0)
    for name in names.values():
        for note in read_notes(folder / name):
            logger.warning("%s", note)


def _encode(
    missing: Sequence[str],
    names: Mapping[str, str],
    folder: Path,
    load_encoder: Callable[[], PromptEncoder],
    dtype: torch.dtype,
    batch_size: int,
    progress: Progress,
) -> None:
    progress.stop_if_asked()
    try:
        _encode_with(load_encoder(), missing, names, folder, dtype, batch_size, progress)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they would keep Gemma2 on the device
        raise


def _encode_with(
    encoder: PromptEncoder,
    missing: Sequence[str],
    names: Mapping[str, str],
    folder: Path,
    dtype: torch.dtype,
    batch_size: int,
    progress: Progress,
) -> None:
    with EntryWriter(dtype, progress) as writer:
        batches = _make_batches(missing, batch_size, encoder)
        all_embeds = encoder.encode_batches(batches, lambda: progress.stop_if_asked(writer.finish))
        for batch, embeds in zip(batches, all_embeds, strict=True):
            writer.write(embeds, [_new_entry(folder / names[text], text, encoder) for text in batch])


def _make_batches(texts: Sequence[str], batch_size: int, encoder: PromptEncoder) -> list[list[str]]:
    """Prompts of like length together, so that padding stays small; as many as the encoder takes tokens."""
    num_tokens = {text: encoder.count_tokens(text) for text in texts}
    batches: list[list[str]] = []
    for text in sorted(texts, key=num_tokens.__getitem__):  # so the newest text of a batch is its longest
        is_room = batches and (len(batches[-1]) + 1) * num_tokens[text] <= encoder.max_batch_tokens
        if is_room and (len(batches[-1]) < batch_size or batch_size == AUTOMATIC_BATCH_SIZE):
            batches[-1].append(text)
        else:
            batches.append([text])
    return batches


def _new_entry(path: Path, text: str, encoder: PromptEncoder) -> NewEntry:
    return NewEntry(
        path=path,
        notes=tuple(encoder.describe_differences([text])),
        problem=f"the text encoder gave values that are not finite for {text!r}: use another file",
    )
