"""The `memory` setting: "auto", or a number of GiB."""

from __future__ import annotations

import re

from ..errors import TrainerError

AUTO = "auto"


def parse_memory(text: str) -> float | None:
    """GiB of the `memory` setting, None for "auto".

    Raises:
        TrainerError: It is neither.
    """
    if text.strip().lower() == AUTO:
        return None
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:gib|gb|g)?\s*", text, re.IGNORECASE)
    if number is None or float(number[1]) <= 0:
        raise TrainerError(f'memory is {text!r}: write "auto", or how many GiB training may take, such as 8 or 11.5')
    return float(number[1])
