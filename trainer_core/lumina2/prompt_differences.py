"""Where a prompt's text means something to ComfyUI that training takes literally.

ComfyUI's CLIP nodes read `(word:1.2)` as a weight and `embedding:name` as a file; its page replaces `{a|b}` by one of
the choices and removes comments before it sends a prompt. Training reads all of these as text. Escaped parentheses are
the exception: `\\(` and `\\)` are read as plain parentheses by both.
"""

from __future__ import annotations

import re

from .encoders.prompts import PROMPT_START

SYNTAX = {
    r"(?<!\\)\(": r"has a parenthesis that ComfyUI reads as a weight: write \( and \) there to get what was trained",
    r"(^|\s)embedding:": "has the word embedding:, which ComfyUI replaces by an embedding file",
    r"(?<!\\)[{}]": r"has a brace that ComfyUI's page reads as a choice: write \{ and \} there to get what was trained",
    r"//|/\*": "has // or /*, after which ComfyUI's page removes the text as a comment",
    "<end_of_turn>": "has <end_of_turn>, which newer ComfyUI reads as one token",
}
"""What a pattern in a prompt means to ComfyUI."""

SHOWN_CHARACTERS = 60


def unescape(prompt: str) -> str:
    r"""Read `\(` and `\)` as plain parentheses, as ComfyUI does."""
    return prompt.replace("\\(", "(").replace("\\)", ")")


def shorten(prompt: str) -> str:
    """The beginning of the caption, without its system prompt, for a message."""
    caption = " ".join(prompt.rpartition(PROMPT_START)[2].split())
    return f'"{caption}"' if len(caption) <= SHOWN_CHARACTERS else f'"{caption[: SHOWN_CHARACTERS - 3]}..."'


def describe_syntax(prompt: str) -> list[str]:
    """A sentence for each thing in a prompt that ComfyUI would read otherwise."""
    return [f"{shorten(prompt)} {meaning}" for pattern, meaning in SYNTAX.items() if re.search(pattern, prompt)]
