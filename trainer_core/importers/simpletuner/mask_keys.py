"""Keys of masks: SimpleTuner's conditioning pictures that weigh the loss."""

from __future__ import annotations

from collections.abc import Sequence

from .rules import Options, Outcome, Rules, by, flag, is_folder, kind_of, number, place_of, text

CONDITIONING = "conditioning"
SOFT, BINARY = "mask", "segmentation"
"""Values of conditioning_type that are masks."""
LINK, KIND, FOLDER = "conditioning_data", "conditioning_type", "instance_data_dir"
SHARE = "masked_loss_probability"


def why_unusable(entry: Options) -> str:
    """Why an entry with conditioning pictures holds no masks for this pack; empty if it does."""
    if flag(entry, "disabled"):
        return "it is disabled"
    if not is_folder(entry):
        return f"it is of type {place_of(entry)}, and masks are read from folders: copy them into one, type local"
    if _type_of(entry) not in (SOFT, BINARY):
        return "masks are what conditioning pictures can be here: Lumina2 takes no others, there either"
    return "" if text(entry, FOLDER) else f"{FOLDER} is missing"


def is_mask_in_use(entry: Options, entries: Sequence[Options]) -> bool:
    """Whether the masks of this entry become those of a folder with pictures."""
    used = (_mask_of(other, entries) for other in entries if kind_of(other) == "image" and is_folder(other))
    return any(mask is not None and mask.where == entry.where for mask in used)


def _type_of(entry: Options) -> str:
    return text(entry, KIND).strip().lower()


def _names(options: Options) -> list[str]:
    value = options.get(LINK)
    names = value if isinstance(value, list) else [value]
    if not all(name is None or isinstance(name, str) for name in names):
        raise options.error(LINK, "the id of a data backend, or a list of them")
    return [name for name in names if name]


def _mask_of(options: Options, entries: Sequence[Options]) -> Options | None:
    """The entry with the masks of an entry with pictures: the first of those it names that can be used."""
    names = _names(options)
    found = (entry for name in names for entry in entries if text(entry, "id") == name)
    return next((entry for entry in found if kind_of(entry) == CONDITIONING and not why_unusable(entry)), None)


def _conditioning_data(options: Options, key: str) -> Outcome:
    names = _names(options)
    if not names:
        return Outcome(note="empty")
    mask = _mask_of(options, options.backends)
    if mask is None:
        return Outcome(note=f"none of them can be used: {'; '.join(_why_none(options, name) for name in names)}")
    notes = ["black is not learned, and the loss is the mean over the mask"]
    if _type_of(mask) == BINARY:
        notes = ["brightness counts here: paint all that is to be learned white"]
    others = [name for name in names if name != text(mask, "id")]
    notes += [f"one folder of masks can be used, so not {', '.join(others)}"] if others else []
    return Outcome(values={"dataset.mask_folder": text(mask, FOLDER)}, note="; ".join(notes))


def _why_none(options: Options, name: str) -> str:
    entry = next((entry for entry in options.backends if text(entry, "id") == name), None)
    if entry is None:
        return f"no data backend has the id {name}"
    reason = why_unusable(entry) if kind_of(entry) == CONDITIONING else "its dataset_type is not conditioning"
    return f"{name}: {reason}"


def _share(options: Options, key: str) -> Outcome:
    share = number(options, key)
    if not 0 <= share <= 1:
        raise options.error(key, "from 0 to 1")
    mask = _mask_of(options, options.backends)
    if mask is None:
        return Outcome(note="there are no masks")
    if _type_of(mask) != BINARY:
        return Outcome(note=f"only {KIND} {BINARY} uses it, there too")
    note = "what a mask leaves on average that counts in this share of the draws" if share < 1 else ""
    return Outcome(values={"dataset.mask_outside_weight": round(1 - share, 6)}, note=note)


MASK_KEYS: Rules = {
    LINK: by(
        _conditioning_data,
        "dataset.mask_folder",
        note=f"the folder of the data backend of that id, if its {KIND} is {SOFT} or {BINARY}",
    ),
    KIND: by(
        lambda options, key: Outcome(note=f"counts in the data backend that {LINK} names"),
        "dataset.mask_folder",
        note=f"read together with {LINK}: {SOFT} and {BINARY} are masks, others are left out",
    ),
    SHARE: by(
        _share,
        "dataset.mask_outside_weight",
        note=f"1 less it, for {KIND} {BINARY}; written in the configuration",
    ),
}
