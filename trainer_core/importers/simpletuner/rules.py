"""What becomes of one key of SimpleTuner: the parts that the tables of keys are written with.

The last functions find entries of the data backend file by what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import TrainerError

NOT_GIVEN: Any = object()
"""Default of a key whose absence leaves this pack's own default in place."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keys of one file or of one entry of a file."""

    where: str
    """What messages call it, such as "config.json"."""
    given: Mapping[str, Any]
    """As written, without leading dashes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """SimpleTuner's values of keys that are not written."""
    backends: tuple[Options, ...] = ()
    """All entries of the data backend file, for keys that depend on them."""

    def get(self, key: str) -> Any:
        """The value of a key, or its default, or None."""
        return self.given.get(key, self.defaults.get(key))

    def error(self, key: str, wanted: str) -> TrainerError:
        """The error of a value that cannot be read."""
        value = self.get(key)
        found = "missing" if value is None else repr(value)
        return TrainerError(f"{self.where}: {key} is {found}: it must be {wanted}")


Parse = Callable[[Options, str], Any]
"""Reads one key as a value of this pack."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a key comes to."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By "part.setting", such as "train.steps", or by part alone where the key has a share in it; none if the key is
    ignored."""
    note: str = ""
    """Why it is ignored, or how the setting differs from the key."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a table of keys."""

    convert: Callable[[Options, str], Outcome]
    targets: tuple[str, ...] = ()
    """The settings it can come to, for the documentation; none if it is always ignored."""
    note: str = ""
    """For the documentation."""
    default: Any = NOT_GIVEN
    """What SimpleTuner takes where the key is not written."""


Rules = Mapping[str, Rule]
"""By key; one that ends in "*" is for all keys that begin so and have no line of their own."""


def to(target: str, parse: Parse, *, note: str = "", default: Any = NOT_GIVEN) -> Rule:
    """A key that is one setting."""

    def convert(options: Options, key: str) -> Outcome:
        return Outcome(values={target: parse(options, key)}, note=note)

    return Rule(convert=convert, targets=(target,), note=note, default=default)


def by(convert: Callable[[Options, str], Outcome], *targets: str, note: str = "", default: Any = NOT_GIVEN) -> Rule:
    """A key whose meaning depends on others."""
    return Rule(convert=convert, targets=targets, note=note, default=default)


def ignored(reason: str) -> Rule:
    """A key that changes nothing here."""
    return Rule(convert=lambda options, key: Outcome(note=reason), note=reason)


def together(part: str, note: str) -> Rule:
    """A key that another one is read with."""
    return Rule(convert=lambda options, key: Outcome(values={part: ""}, note=note), targets=(part,), note=note)


def find_rule(rules: Rules, key: str) -> Rule | None:
    """The line of a key, or of the longest beginning that has one."""
    if key in rules:
        return rules[key]
    beginnings = [name for name in rules if name.endswith("*") and key.startswith(name[:-1])]
    return rules[max(beginnings, key=len)] if beginnings else None


def defaults_of(rules: Rules) -> dict[str, Any]:
    """SimpleTuner's values of keys that need not be written."""
    return {key: rule.default for key, rule in rules.items() if rule.default is not NOT_GIVEN}


def number(options: Options, key: str) -> float:
    """A finite number, also as text."""
    value = options.get(key)
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        result = float(value)
    except ValueError:
        raise options.error(key, "a number") from None
    if not math.isfinite(result):
        raise options.error(key, "a finite number")
    return result


def whole(options: Options, key: str) -> int:
    """A whole number, also as text."""
    value = options.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    result = number(options, key)
    if result != int(result):
        raise options.error(key, "a whole number")
    return int(result)


def count(options: Options, key: str) -> int:
    """A whole number that is not negative; 0 where the key is absent or null."""
    if options.get(key) is None:
        return 0
    result = whole(options, key)
    if result < 0:
        raise options.error(key, "0 or more")
    return result


def flag(options: Options, key: str) -> bool:
    """True or false, also as text; false where the key is absent or null."""
    value = options.get(key)
    known = {"true": True, "1": True, "yes": True, "": True, "false": False, "0": False, "no": False, "none": False}
    if value is None:
        return False
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, str)) and str(value).strip().lower() in known:
        return known[str(value).strip().lower()]
    raise options.error(key, "true or false")


def text(options: Options, key: str) -> str:
    """A text; empty where the key is absent or null."""
    value = options.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise options.error(key, "a text")
    return str(value)


def one_of(choices: Mapping[str, Any]) -> Parse:
    """A name that stands for something."""

    def parse(options: Options, key: str) -> Any:
        name = text(options, key).strip().lower()
        if name not in choices:
            raise options.error(key, f"one of {', '.join(choices)}")
        return choices[name]

    return parse


def lines(value: str) -> str:
    """Without empty lines and spaces around each."""
    return "\n".join(line.strip() for line in value.splitlines() if line.strip())


def file_name(value: str, fallback: str) -> str:
    """A text as this pack allows names of runs and files: letters, digits, ".", "-" and "_"."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in value)
    return kept.strip("._-")[:100].rstrip("._-") or fallback


def read_entries(where: str, entries: Sequence[Mapping[str, Any]]) -> tuple[Options, ...]:
    """Every entry with what messages call it."""
    named = []
    for position, entry in enumerate(entries, start=1):
        name = text(Options(where=f"{where}, entry {position}", given=entry), "id") or f"entry {position}"
        named.append(Options(where=f"{where}, {name}", given=entry))
    return tuple(named)


def kind_of(entry: Options) -> str:
    """Its dataset_type."""
    return text(entry, "dataset_type").strip().lower() or "image"


def place_of(entry: Options) -> str:
    """Its type: "local" is a folder of this machine."""
    return text(entry, "type").strip().lower() or "local"


def is_folder(entry: Options) -> bool:
    """Whether it is a folder of this machine that is in use."""
    return place_of(entry) == "local" and not flag(entry, "disabled")


def holds(entries: Iterable[Options], kind: str) -> bool:
    """Whether an entry of this kind is in use."""
    return any(kind_of(entry) == kind and not flag(entry, "disabled") for entry in entries)
