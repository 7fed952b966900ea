"""Which pictures are drawn: the prompts typed in, those of a library, and the bare empty one, in every size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..context import StepContext
from ..data.cache import load_embeds
from ..data.index import EmbedIndex
from ..lumina2.encoders.prompts import UNCONDITIONAL
from .clip_score import find_clip_model
from .prompt_library import read_prompt_library
from .settings import PictureSettings

Settings = TypeVar("Settings", bound=PictureSettings)


@dataclass(frozen=True, kw_only=True)
class PlannedPicture:
    """One picture, whichever weights it is drawn with."""

    stem: str
    """Of its file's name; what marks the weights follows."""
    prompt: str
    """As typed; UNCONDITIONAL is the bare empty prompt, without a system prompt."""
    width: int
    height: int

    @property
    def is_unconditional(self) -> bool:
        """Whether it shows the bare empty prompt, where guidance has nothing to steer to."""
        return self.prompt == UNCONDITIONAL


def with_prompt_library(settings: Settings, context: StepContext) -> Settings:
    """The same settings with the prompts of their library.

    Raises:
        TrainerError: The file lies outside of the allowed folders, is missing, or is not a prompt library.
    """
    if not settings.prompt_library.strip():
        return settings
    path = context.resolve_inside_roots(settings.prompt_library.strip(), "prompt_library")
    return dataclasses.replace(settings, named_prompts=read_prompt_library(path))


def with_clip_model(settings: Settings, context: StepContext) -> Settings:
    """The same settings with the folder of their CLIP model.

    Raises:
        TrainerError: There is no such model, or what computes the scores is not installed.
    """
    if not settings.clip_model.strip():
        return settings
    return dataclasses.replace(settings, clip_model=str(find_clip_model(settings.clip_model.strip(), context)))


def with_files(settings: Settings, context: StepContext) -> Settings:
    """The same settings with everything they name."""
    return with_clip_model(with_prompt_library(settings, context), context)


def load_prompt_embeds(settings: PictureSettings, index: EmbedIndex) -> dict[str, Tensor]:
    """[tokens, width] of each prompt that is drawn, by the prompt; they are known to be encoded."""
    embeds = {prompt: load_embeds(index.prompts[prompt]) for prompt in settings.prompt_list}
    return {**embeds, UNCONDITIONAL: load_embeds(index.unconditional)}


def plan_pictures(settings: PictureSettings) -> tuple[PlannedPicture, ...]:
    """The pictures in order: typed prompts, library, unconditional, of each all sizes."""
    prompts = [("", prompt) for prompt in settings.typed_prompts]
    prompts += [(f"-{named.name}", named.prompt) for named in settings.named_prompts]
    if settings.draw_unconditional:
        prompts.append(("-unconditional", UNCONDITIONAL))
    digits = max(2, len(str(len(prompts) - 1)))  # so that names sort as the prompts do
    sizes = settings.sizes
    return tuple(
        PlannedPicture(
            stem=f"{number:0{digits}d}{name}" + (f"-{width}x{height}" if len(sizes) > 1 else ""),
            prompt=prompt,
            width=width,
            height=height,
        )
        for number, (name, prompt) in enumerate(prompts)
        for width, height in sizes
    )
