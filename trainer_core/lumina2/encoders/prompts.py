"""How a caption becomes the prompt that Gemma2 reads, and where ComfyUI would read the same text otherwise.

ComfyUI's CLIP nodes read `(word:1.2)` as a weight and `embedding:name` as a file; its page replaces `{a|b}` by one of
the choices and removes comments before it sends a prompt. Training reads all of these as text. Escaped parentheses are
the exception: backslash and parenthesis are read as a plain parenthesis by both.
"""

from __future__ import annotations

import re

from ...errors import TrainerError

SYSTEM_PROMPTS: dict[str, str] = {
    "superior": (
        "You are an assistant designed to generate superior images with the superior degree of image-text alignment"
        " based on textual prompts or user prompts."
    ),
    "alignment": (
        "You are an assistant designed to generate high-quality images with the highest degree of image-text alignment"
        " based on textual prompts."
    ),
    "anime": "You are an assistant designed to generate anime images based on textual prompts.",
    "none": "",
}
"""Presets by name. "anime" is what Neta Lumina and NetaYume Lumina were trained with."""

CUSTOM = "custom"
"""The choice of a system prompt that is typed in."""
PROMPT_START = " <Prompt Start> "
UNCONDITIONAL = ""
"""The unconditional prompt: bare, without system prompt, in caption dropout and in guidance alike."""
UNCONDITIONAL_TOKENS = 1
"""Of it: the token that begins every prompt."""
MAX_PROMPT_TOKENS = 256


def build_prompt(caption: str, system_prompt: str) -> str:
    """`<system prompt> <Prompt Start> <caption>`, or the bare caption where there is no system prompt."""
    return f"{system_prompt}{PROMPT_START}{caption}" if system_prompt else caption


def resolve_system_prompt(choice: str, custom: str) -> str:
    """The text of a system prompt.

    Args:
        choice: Key of SYSTEM_PROMPTS, or CUSTOM.
        custom: The text when the choice is CUSTOM.
    """
    return custom.strip() if choice == CUSTOM else SYSTEM_PROMPTS[choice]


def check_system_prompt(choice: str, custom: str) -> None:
    """Refuse a text that the choice leaves unused, and a choice that lacks its text.

    Args:
        choice: What a node's system_prompt is.
        custom: Its custom_system_prompt; blanks alone count as empty.

    Raises:
        TrainerError: They contradict each other.
    """
    if choice == CUSTOM and not custom.strip():
        raise TrainerError(
            "system_prompt is custom but custom_system_prompt is empty: write the system prompt there, or choose"
            " another system_prompt"
        )
    if choice != CUSTOM and custom.strip():
        raise TrainerError(
            f"custom_system_prompt is {custom.strip()!r} but system_prompt is {choice}, which does not use it:"
            " set system_prompt to custom, or empty custom_system_prompt"
        )


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
