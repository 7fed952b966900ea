"""The table of what became of each key, and the table of all keys that are known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ...workflow.canvas import FULL_PARTS, PARTS
from .adapter_keys import LYCORIS_KEYS
from .dataset_keys import DATASET_KEYS, TEXT_EMBEDS_KEYS
from .rules import NOT_GIVEN, Rules
from .translate import CONFIG_TOPICS, DEFAULT, IGNORED, MAPPED, UNKNOWN, Row, Translation

MAX_VALUE = 34
"""Characters of a value that the table shows."""
HEADINGS = {
    MAPPED: "",
    IGNORED: "ignored",
    UNKNOWN: "not known, so ignored: check the spelling",
    DEFAULT: "not written, so SimpleTuner's default",
}


def report_text(translation: Translation) -> str:
    """A table for the terminal, file by file."""
    blocks = []
    for where in dict.fromkeys(row.where for row in translation.rows):
        rows = [row for row in translation.rows if row.where == where]
        blocks.append("\n".join([where, *_blocks(rows, translation.is_full)]))
    return "\n\n".join(blocks)


def _blocks(rows: Sequence[Row], is_full: bool) -> Iterable[str]:
    key_width = min(44, max(len(row.key) for row in rows))
    value_width = max(len(shown(row.value)) for row in rows)
    for state, heading in HEADINGS.items():
        found = [row for row in rows if row.state == state]
        if found and heading:
            yield f"  {heading}:"
        for row in found:
            yield f"    {row.key:<{key_width}}  {shown(row.value):<{value_width}}  {_becomes(row, is_full)}".rstrip()


def _becomes(row: Row, is_full: bool) -> str:
    settings = [
        f"{title(target, is_full)} = {shown(value)}" if "." in target else title(target, is_full)
        for target, value in row.settings.items()
    ]
    if not settings:
        return row.note
    return "; ".join(settings) + (f" ({row.note})" if row.note else "")


def title(target: str, is_full: bool = False) -> str:
    """ "train.steps" as "Train LoRA: steps"."""
    part, _, setting = target.partition(".")
    name = PARTS[FULL_PARTS[part] if is_full and part in FULL_PARTS else part].title
    return f"{name}: {setting}" if setting else name


def shown(value: Any) -> str:
    """A value as JSON, on one line and not too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def known_keys() -> str:
    """All keys that are known, as tables in Markdown."""
    topics = {
        **CONFIG_TOPICS,
        "LyCORIS: the file of lycoris_config": LYCORIS_KEYS,
        "Data backends with pictures": DATASET_KEYS,
        "Data backends with dataset_type text_embeds": TEXT_EMBEDS_KEYS,
    }
    return "\n".join(f"### {topic}\n\n{_key_table(rules)}" for topic, rules in topics.items())


def _key_table(rules: Rules) -> str:
    lines = ["| key | becomes | if not written |", "|---|---|---|"]
    for key, rule in rules.items():
        targets = "; ".join(title(target) for target in rule.targets)
        note = f" ({rule.note})" if targets and rule.note else rule.note
        becomes = f"{targets}{note}" if targets else f"ignored: {note}"
        default = "" if rule.default in (NOT_GIVEN, None, "") else f"`{shown(rule.default)}`"
        lines.append(f"| `{key}` | {becomes} | {default} |")
    return "\n".join(lines) + "\n"
