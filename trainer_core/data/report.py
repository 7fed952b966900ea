"""What Dataset Folder found, as text for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .caption_rows import CaptionCounter, group_by_captions
from .folder import DatasetFolderSettings
from .picture_index import BLURRY, find_look_alikes
from .scan import Picture, ScannedDataset, ScannedFolder
from .sizing import kept_fraction, upscale_factor

MAX_LINES = 50
"""Names listed of each kind; the count before them is always complete."""
MAX_NAMES = 5
"""Names listed of pictures that share a caption."""
CROP_WARNING = 0.75
"""Pictures that keep less of their area than this are listed."""
UPSCALE_WARNING = 1.05
"""Pictures enlarged by more than this are listed; a few pixels are nobody's loss."""


def write_report(scanned: ScannedDataset, counter: CaptionCounter | None = None) -> str:
    """Counts, buckets and everything a person may want to put right.

    Args:
        scanned: The dataset.
        counter: Says which captions are too long; None leaves that out.
    """
    pictures = scanned.pictures
    num_samples = sum(picture.repeats for picture in pictures)
    head = f"Pictures used: {len(pictures)}, samples in one pass: {num_samples}, left out: {len(scanned.skipped)}"
    sections = [
        [head, *(_describe_folder(folder) for folder in scanned.folders)],
        _describe_buckets(pictures),
        _describe_sizes(pictures),
        _list("Left out", (f"{skipped.name}: {skipped.reason}" for skipped in scanned.skipped)),
        _list("Without caption", (f"{p.id}: {p.caption.problem}" for p in pictures if p.caption.problem)),
        _list("Duplicates, the same file twice", _find_duplicates(pictures)),
        _list("Look the same", _find_look_alikes(pictures)),
        _list("Blurry, or hardly anything in them", _find_blurry(pictures)),
        _list("Captions of several pictures", _find_shared_captions(scanned)),
        _list("Perhaps longer than training reads, see Caption Table", _find_long_captions(pictures, counter)),
        _list("Smaller than their bucket and scaled up", _find_upscaled(pictures)),
        _list("Cropped by more than a quarter", _find_cropped(scanned)),
        _list("Animated, only the first frame is used", (p.id for p in pictures if p.facts.is_animated)),
        _list("Neither picture nor caption of one", (name for f in scanned.folders for name in f.ignored)),
        _list("Rows that name no picture of the folder", (row for f in scanned.folders for row in f.unused_rows)),
        _list("Subfolders not read, include_subfolders is off", (n for f in scanned.folders for n in f.unread_folders)),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _describe_folder(folder: ScannedFolder) -> str:
    settings = folder.folder.settings
    trigger = f", trigger words {settings.trigger_words!r}" if settings.trigger_words else ""
    return (
        f"Folder {folder.number}: {settings.folder} ({len(folder.pictures)} pictures x {settings.repeats},"
        f" resolution {settings.size_plan.resolution}, {settings.aspect}, captions by {settings.caption_source}"
        f"{trigger}{_describe_mix(settings)}{_describe_variants(folder)}{_describe_masks(folder)})"
    )


def _describe_mix(settings: DatasetFolderSettings) -> str:
    mix = f", probability {settings.probability:g}" if settings.probability != 1 else ""
    mix += ", sampling uniform" if settings.sampling == "uniform" else ""
    mix += ", held out" if settings.is_held_out else ""
    return mix + (", regularisation" if settings.is_regularisation else "")


def _describe_masks(folder: ScannedFolder) -> str:
    if not folder.folder.mask_path:
        return ""
    count = sum(picture.mask is not None for picture in folder.pictures)
    return f", {count} masked, the rest counts {folder.folder.settings.mask_outside_weight:g}"


def _describe_variants(folder: ScannedFolder) -> str:
    """How many texts and crops are cached, where it is more than one a picture."""
    counts = {
        "texts": sum(len(picture.caption.texts) for picture in folder.pictures),
        "crops": sum(len(picture.boxes) for picture in folder.pictures),
    }
    return "".join(f", {count} {kind} to encode" for kind, count in counts.items() if count > len(folder.pictures))


def _describe_buckets(pictures: Sequence[Picture]) -> list[str]:
    counts = Counter(picture.bucket for picture in pictures)
    return ["Buckets (width x height):", *(f"  {bucket}: {count}" for bucket, count in sorted(counts.items()))]


def _describe_sizes(pictures: Sequence[Picture]) -> list[str]:
    by_area = sorted(pictures, key=lambda picture: picture.facts.width * picture.facts.height)
    smallest, largest = by_area[0], by_area[-1]
    return [
        f"Smallest picture: {smallest.facts.width} x {smallest.facts.height} ({smallest.id})",
        f"Largest picture: {largest.facts.width} x {largest.facts.height} ({largest.id})",
    ]


def _list(title: str, lines: Iterable[str]) -> list[str]:
    """A titled list, or nothing where there is nothing to say."""
    lines = list(lines)
    if not lines:
        return []
    more = [f"  and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return [f"{title} ({len(lines)}):", *(f"  {line}" for line in lines[:MAX_LINES]), *more]


def _find_duplicates(pictures: Sequence[Picture]) -> list[str]:
    """Files of equal content; a folder that is added twice on purpose has the same files, not duplicates."""
    by_content: dict[str, dict[Path, str]] = defaultdict(dict)
    for picture in pictures:
        by_content[picture.facts.content_hash].setdefault(picture.path, picture.id)
    return [" = ".join(names.values()) for names in by_content.values() if len(names) > 1]


def _find_look_alikes(pictures: Sequence[Picture]) -> list[str]:
    """Not files of equal content, which are duplicates, nor pictures without structure, whose looks say nothing."""
    by_content = {p.facts.content_hash: p for p in pictures if p.facts.sharpness >= BLURRY}
    looks = {picture.id: picture.facts.look for picture in by_content.values()}
    return [" ~ ".join(group) for group in find_look_alikes(looks)]


def _find_blurry(pictures: Sequence[Picture]) -> list[str]:
    blurry = sorted((p for p in pictures if p.facts.sharpness < BLURRY), key=lambda p: p.facts.sharpness)
    return [f"{p.id}: sharpness {p.facts.sharpness:.1f}, pictures in focus have 50 and more" for p in blurry]


def _find_shared_captions(scanned: ScannedDataset) -> list[str]:
    """What cannot be told apart by its caption is learned as one; not where one caption for all was asked for."""
    shared = [(texts, list(ids.values())) for texts, ids in group_by_captions(scanned).items() if len(ids) > 1]
    return [f"{len(ids)} have {texts[0]!r}: {', '.join(ids[:MAX_NAMES])}" for texts, ids in shared]


def _find_long_captions(pictures: Sequence[Picture], counter: CaptionCounter | None) -> Iterator[str]:
    for picture in pictures if counter else ():
        longest = max(picture.caption.texts, key=len, default="")
        if counter and counter.find_length_mark(longest):
            yield f"{picture.id}: {len(longest)} characters"


def _find_upscaled(pictures: Sequence[Picture]) -> list[str]:
    lines = []
    for picture in pictures:
        facts = picture.facts
        factor = upscale_factor(picture.bucket, picture.boxes[0])
        if factor > UPSCALE_WARNING:
            lines.append(f"{picture.id}: {facts.width} x {facts.height} to {picture.bucket}, {factor:.1f} times")
    return lines


def _find_cropped(scanned: ScannedDataset) -> list[str]:
    """Not where another shape or a detail was asked for."""
    lines = []
    plans = [(folder, folder.folder.settings.size_plan) for folder in scanned.folders]
    whole = [folder for folder, plan in plans if plan.aspect == "buckets" and not plan.target_downsample_size]
    for picture in (picture for folder in whole for picture in folder.pictures):
        kept = kept_fraction(picture.facts.width, picture.facts.height, picture.boxes[0])
        if kept < CROP_WARNING:
            lines.append(f"{picture.id}: {kept:.0%} of {picture.facts.width} x {picture.facts.height} is kept")
    return lines
