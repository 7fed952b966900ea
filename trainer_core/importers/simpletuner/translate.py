"""From the keys of SimpleTuner's files to the settings of nodes, and what became of each key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...data.folder import DatasetFolderSettings
from ...errors import TrainerError
from ...workflow.canvas import FULL_PARTS, PARTS
from ...workflow.nodes import NODE_STEPS
from .adapter_keys import LORA_KEYS, LYCORIS_KEYS
from .dataset_keys import DATASET_CONFIG_KEYS, DATASET_KEYS, SHARED_WITH_CONFIG, TEXT_EMBEDS_KEYS
from .learning_keys import LEARNING_KEYS
from .mask_keys import CONDITIONING, is_mask_in_use, why_unusable
from .noise_keys import NOISE_KEYS
from .rollout_keys import ROLLOUT_KEYS, why_not_rolled
from .rules import Options, Rules, defaults_of, find_rule, flag, is_folder, kind_of, place_of, read_entries
from .run_keys import RUN_KEYS, is_full, is_lycoris
from .sharing_keys import OTHER_KEYS, SHARING_KEYS
from .validation_keys import NO_PICTURES, VALIDATION_KEYS, has_prompts, measures_held_out

CONFIG_TOPICS: Mapping[str, Rules] = {
    "The run": RUN_KEYS,
    "Optimizer and learning rate": LEARNING_KEYS,
    "Noise levels and loss": NOISE_KEYS,
    "Scheduled sampling": ROLLOUT_KEYS,
    "LoRA": LORA_KEYS,
    "Data and caches": DATASET_CONFIG_KEYS,
    "Validation": VALIDATION_KEYS,
    "Tracking and the hub": SHARING_KEYS,
    "The rest": OTHER_KEYS,
}
CONFIG_KEYS: Rules = {key: rule for rules in CONFIG_TOPICS.values() for key, rule in rules.items()}
REQUIRED = ("model_family", "model_type")
"""Keys of the configuration that must be written."""
ALWAYS = ("model", "latents", "embeds", "optimizer", "noise", "checkpoints", "train", "save")
OPTIONAL = ("lora", "lycoris", "rollout", "validation", "tracking", "hub")
"""Parts that a configuration may do without, see `_parts_left_out`."""

KINDS = {
    "image": "",
    "eval": "",
    "conditioning": "left out: conditioning_data of no data backend with pictures names it, or names another before it",
    "image_embeds": "left out: latents are cached in output/lumina2_trainer/cache",
    "text_embeds": "",
}
"""Values of dataset_type, and why entries of each are left out, if they are."""
MAPPED, DEFAULT, IGNORED, UNKNOWN = "mapped", "default", "ignored", "not known"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one key."""

    where: str
    """The file, and the entry in it."""
    key: str
    value: Any
    state: str
    """MAPPED, DEFAULT (of SimpleTuner, for the key is not written), IGNORED or UNKNOWN."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By "part.setting"."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A configuration as settings of nodes."""

    settings: Mapping[str, Any]
    """A settings dataclass for each part that has a node, but for the datasets."""
    datasets: tuple[DatasetFolderSettings, ...]
    """In the order of the file; each is added to the one before."""
    rows: tuple[Row, ...]
    is_full: bool


@dataclass(frozen=True, kw_only=True)
class Backends:
    """The data backend file."""

    where: str
    entries: Sequence[Mapping[str, Any]]


def translate(config: Options, backends: Backends, lycoris: Options | None) -> Translation:
    """Turn the keys of all files into settings.

    Args:
        config: The configuration; its defaults are filled in here.
        backends: The data backends.
        lycoris: The file of the LyCORIS adapter, if one is trained.

    Raises:
        TrainerError: A value cannot be read or is out of range, a key that must be there is missing, or no backend
            has pictures in a folder.
    """
    entries = read_entries(backends.where, backends.entries)
    config = dataclasses.replace(config, defaults=defaults_of(CONFIG_KEYS), backends=entries)
    for key in REQUIRED:
        CONFIG_KEYS[key].convert(config, key)
    rows = apply_rules(CONFIG_KEYS, config)
    if lycoris is not None:
        rows += apply_rules(LYCORIS_KEYS, dataclasses.replace(lycoris, defaults=defaults_of(LYCORIS_KEYS)))
    off = _parts_left_out(config, rows)
    rows = [_without_parts(row, off) for row in rows if row.state != DEFAULT or not _is_off(row, off)]
    shared = {name: value for row in rows for name, value in row.settings.items() if name.startswith("dataset.")}
    datasets, data_rows = _read_backends(config, shared)
    if all(dataset.is_held_out for dataset in datasets):
        raise TrainerError(
            f"{backends.where}: no entry with pictures to train on in a folder of this machine is left:"
            " add one with type local"
        )
    rows += data_rows
    parts = [*ALWAYS, *(part for part in OPTIONAL if part not in off)]
    settings = {part: _build(part, rows, is_full(config)) for part in parts}
    return Translation(settings=settings, datasets=datasets, rows=tuple(rows), is_full=is_full(config))


def apply_rules(rules: Rules, options: Options) -> list[Row]:
    """What becomes of every key that is written, and of the defaults of those that are not."""
    rows = []
    for key, value in options.given.items():
        rule = find_rule(rules, key)
        if rule is None:
            rows.append(Row(where=options.where, key=key, value=value, state=UNKNOWN))
            continue
        outcome = rule.convert(options, key)
        state = MAPPED if outcome.values else IGNORED
        rows.append(
            Row(where=options.where, key=key, value=value, state=state, settings=outcome.values, note=outcome.note)
        )
    for key, value in options.defaults.items():
        if key in options.given:
            continue
        outcome = rules[key].convert(options, key)
        if any("." in name for name in outcome.values):
            rows.append(
                Row(
                    where=options.where,
                    key=key,
                    value=value,
                    state=DEFAULT,
                    settings=outcome.values,
                    note=outcome.note,
                )
            )
    return rows


def _parts_left_out(config: Options, rows: Sequence[Row]) -> dict[str, str]:
    """Parts without a node, and why."""
    off = {}
    if is_full(config):
        off["lora"] = off["lycoris"] = "model_type is full, there is no adapter"
    elif is_lycoris(config):
        off["lora"] = "lora_type is lycoris"
    else:
        off["lycoris"] = "lora_type is standard"
    if why_not_rolled(config):
        off["rollout"] = why_not_rolled(config)
    if not has_prompts(config) and not measures_held_out(config):
        off["validation"] = NO_PICTURES
    if not any("tracking.report_to" in row.settings for row in rows):
        off["tracking"] = "report_to names no tracker that is offered"
    if not flag(config, "push_to_hub"):
        off["hub"] = "push_to_hub is off"
    return off


def _is_off(row: Row, off: Mapping[str, str]) -> bool:
    return all(name.partition(".")[0] in off for name in row.settings)


def _without_parts(row: Row, off: Mapping[str, str]) -> Row:
    """The row without what would be set on nodes that are left out."""
    settings = {name: value for name, value in row.settings.items() if name.partition(".")[0] not in off}
    if settings or not row.settings:
        return dataclasses.replace(row, settings=settings)
    part = next(iter(row.settings)).partition(".")[0]
    return dataclasses.replace(row, settings={}, state=IGNORED, note=off[part])


def _read_backends(config: Options, shared: Mapping[str, Any]) -> tuple[tuple[DatasetFolderSettings, ...], list[Row]]:
    datasets: list[DatasetFolderSettings] = []
    rows: list[Row] = []
    defaults = {**defaults_of(DATASET_KEYS), **{k: config.given[k] for k in SHARED_WITH_CONFIG if k in config.given}}
    for entry in config.backends:
        options = dataclasses.replace(entry, defaults=defaults, backends=config.backends)
        as_a_whole = _read_whole(options, config)
        if as_a_whole is not None:
            rows.append(as_a_whole)
        elif kind_of(options) == "text_embeds":
            rows += apply_rules(TEXT_EMBEDS_KEYS, entry)
        else:
            found = [_with_source(row, config) for row in apply_rules(DATASET_KEYS, options)]
            datasets.append(_build_dataset(found, shared, options.where))
            rows += found
    return tuple(datasets), rows


def _with_source(row: Row, config: Options) -> Row:
    """The row of a key that the configuration gives in the place of the entry, which says so."""
    if row.state != DEFAULT or row.key not in SHARED_WITH_CONFIG or row.key not in config.given:
        return row
    note = f"as {config.where} says"
    return dataclasses.replace(row, state=MAPPED, note=f"{note}; {row.note}" if row.note else note)


def _read_whole(options: Options, config: Options) -> Row | None:
    """One row for an entry whose keys count together; None if each key has its own."""
    row = Row(where=options.where, key=", ".join(options.given), value="", state=IGNORED)
    kind = kind_of(options)
    if kind != "text_embeds" and flag(options, "disabled"):
        return dataclasses.replace(row, note="left out: it is disabled")
    if kind not in KINDS:
        raise options.error("dataset_type", f"one of {', '.join(KINDS)}")
    if kind == CONDITIONING and is_mask_in_use(options, config.backends):
        note = "its folder is mask_folder of those that name it in conditioning_data"
        return dataclasses.replace(row, state=MAPPED, settings={"dataset": ""}, note=note)
    if kind == CONDITIONING and why_unusable(options):
        return dataclasses.replace(row, note=f"left out: {why_unusable(options)}")
    if kind == "eval" and not measures_held_out(config):
        return dataclasses.replace(row, note="left out: eval_loss_disable is on")
    if kind in ("image", "eval") and not is_folder(options):
        why = f"it is of type {place_of(options)}, and pictures are read from folders"
        return dataclasses.replace(row, note=f"left out: {why}: copy them into one, type local")
    return dataclasses.replace(row, note=KINDS[kind]) if KINDS[kind] else None


def _build_dataset(rows: Sequence[Row], shared: Mapping[str, Any], where: str) -> DatasetFolderSettings:
    values = {name: value for row in rows for name, value in row.settings.items() if "." in name}
    with_shared = {name.partition(".")[2]: value for name, value in {**shared, **values}.items()}
    try:
        return DatasetFolderSettings(**with_shared)
    except TrainerError as error:
        raise _blame(error, "dataset", rows, where) from error


def _build(part: str, rows: Sequence[Row], full: bool) -> Any:
    node = PARTS[FULL_PARTS[part] if full and part in FULL_PARTS else part].node
    cls = NODE_STEPS[node].settings
    names = {setting.name for setting in dataclasses.fields(cls)}
    values = {}
    for row in rows:
        for target, value in row.settings.items():
            owner, _, name = target.partition(".")
            if owner == part and name in names:
                values[name] = value
    try:
        return cls(**values)
    except TrainerError as error:
        raise _blame(error, part, rows, "") from error


def _blame(error: TrainerError, part: str, rows: Sequence[Row], where: str) -> TrainerError:
    """The same error with the key that the setting came from."""
    setting = str(error).partition(" ")[0]
    row = next((row for row in rows if f"{part}.{setting}" in row.settings), None)
    if row is None:
        return TrainerError(f"{where or rows[0].where}, as {PARTS[part].title}: {error}")
    return TrainerError(f"{row.where}: {row.key}, as {PARTS[part].title}: {error}")
