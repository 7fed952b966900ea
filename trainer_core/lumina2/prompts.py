"""How a caption becomes the prompt that Gemma2 reads."""

from __future__ import annotations

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
        choice: Key of SYSTEM_PROMPTS, or "custom".
        custom: The text when the choice is "custom".
    """
    return custom.strip() if choice == "custom" else SYSTEM_PROMPTS[choice]
