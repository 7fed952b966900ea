"""What to draw, and how: the settings of Validate and of Validation Prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import TrainerError
from ..lumina2.encoders.prompts import CUSTOM, SYSTEM_PROMPTS, check_system_prompt
from ..lumina2.sampling import SCHEDULES
from ..settings import check_settings, setting
from .clip_score import CLIP_DEVICES
from .prompt_library import NamedPrompt

FROM_ADAPTER = "from adapter"
MIN_SIDE, MAX_SIDE, SIDE_STEP = 64, 4096, 16
"""Of a picture, in pixels."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Prompts and sampler, for validation during training and for Validate alike."""

    prompts: str = setting("", multiline=True)
    """One prompt a line, without the system prompt."""
    negative_prompt: str = setting("", multiline=True)
    """What guidance steers away from; encoded without the system prompt. Empty is the usual choice."""
    width: int = setting(1024, minimum=MIN_SIDE, maximum=MAX_SIDE, step=SIDE_STEP)
    """Width of the picture in pixels, a multiple of 16."""
    height: int = setting(1024, minimum=MIN_SIDE, maximum=MAX_SIDE, step=SIDE_STEP)
    """Height of the picture in pixels, a multiple of 16."""
    num_inference_steps: int = setting(30, minimum=1, maximum=1000)
    """Sampling steps a picture."""
    guidance_scale: float = setting(4.0, minimum=0.0, maximum=100.0, step=0.1)
    """Strength of classifier-free guidance; 1.0 turns it off."""
    seed: int = setting(42, minimum=0, maximum=2**63 - 1)
    """Seed of the starting noise; the same seed in KSampler gives the same picture."""
    schedule: str = setting("comfyui", choices=SCHEDULES)
    """"comfyui" draws what KSampler draws with euler, simple and plain guidance; "diffusers" what Lumina2Pipeline
    draws, with its schedule and guidance normalisation."""
    shift: float = setting(6.0, minimum=0.01, maximum=100.0, step=0.1)
    """Shift of the sampling schedule. Lumina2 was made for 6.0; this is not the shift of training."""

    def __post_init__(self) -> None:
        check_settings(self)
        for side in ("width", "height"):
            if getattr(self, side) % SIDE_STEP:
                raise TrainerError(f"{side} is {getattr(self, side)}: it must be a multiple of 16")

    @property
    def typed_prompts(self) -> tuple[str, ...]:
        """The prompts typed in, without empty lines."""
        return tuple(line.strip() for line in self.prompts.splitlines() if line.strip())


@dataclass(frozen=True, kw_only=True)
class _First(SamplerSettings):
    """What Validation Prompts had at first, for the order of its widgets."""

    every_num_steps: int = setting(250, minimum=0, maximum=1000000)
    """Optimizer steps between validations during training; 0 validates only at the end."""


@dataclass(frozen=True, kw_only=True)
class _FirstOfValidate(SamplerSettings):
    """What Validate had at first, for the order of its widgets."""

    strength: float = setting(1.0, minimum=-10.0, maximum=10.0, step=0.05)
    """Strength of the adapter, as in ComfyUI's LoRA loaders."""
    system_prompt: str = setting(FROM_ADAPTER, choices=(FROM_ADAPTER, *SYSTEM_PROMPTS, CUSTOM))
    """Text put before every prompt. "from adapter" is what the adapter was trained with; without an adapter, what the
    model was trained with by Train Full Model, or "superior"."""
    custom_system_prompt: str = setting("", multiline=True)
    """The system prompt when system_prompt is "custom"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_system_prompt(self.system_prompt, self.custom_system_prompt)


@dataclass(frozen=True, kw_only=True)
class PictureSettings(SamplerSettings):
    """What was added to both later. Dataclasses order fields from the last base to the first, so these follow what
    each had at first."""

    guidance_rescale: float = setting(0.0, minimum=0.0, maximum=1.0, step=0.05, is_optional=True)
    """Brings the contrast of the guided prediction back to that without guidance, against overexposed pictures: 0 not
    at all, 1 fully. 0.7 is usual with a strong guidance_scale; KSampler draws as with 0."""
    prompt_library: str = setting("", is_optional=True)
    """A JSON file {"name": "prompt", ...} in the input folder or a dataset folder; its prompts are drawn after those
    typed in, and pictures get their names. Empty for none."""
    more_sizes: str = setting("", is_optional=True)
    """Further sizes to draw each prompt in, such as "1536x1024, 768": width x height in pixels, or the side of a
    square. Empty for width and height alone."""
    draw_unconditional: bool = setting(False, is_optional=True)
    """Draw the bare empty prompt as well, without guidance: what is drawn where nothing is said, which training can
    spoil unseen."""
    draw_base: bool = setting(False, is_optional=True)
    """Put beside each picture that of the base, with the same prompt and seed; during a run it is drawn only once."""
    clip_model: str = setting("", is_optional=True)
    """A CLIP model that scores how well each picture fits its prompt: a folder in models/text_encoders, or the name of
    a repository on huggingface.co such as openai/clip-vit-large-patch14, which is downloaded. Empty for none."""
    clip_device: str = setting("cpu", choices=CLIP_DEVICES, is_optional=True)
    """Where pictures are scored: "cpu" takes about a second each and no memory of the GPU, "device" 2 GiB for a while.
    For clip_model."""
    named_prompts: tuple[NamedPrompt, ...] = ()
    """Prompts of prompt_library, once it was read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sizes(self.more_sizes)
        if self.guidance_rescale and self.guidance_scale == 1:
            raise TrainerError(
                f"guidance_rescale is {self.guidance_rescale:g}, but guidance_scale 1 means no guidance:"
                " set guidance_rescale to 0, or raise guidance_scale"
            )

    @property
    def prompt_list(self) -> tuple[str, ...]:
        """All prompts that are encoded with a system prompt, each once."""
        return tuple(dict.fromkeys((*self.typed_prompts, *(named.prompt for named in self.named_prompts))))

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height in pixels of all sizes, each once."""
        return tuple(dict.fromkeys([(self.width, self.height), *parse_sizes(self.more_sizes)]))


def parse_sizes(more_sizes: str) -> tuple[tuple[int, int], ...]:
    """Width and height in pixels of each size in a list such as "1536x1024, 768".

    Raises:
        TrainerError: It is no such list, or a size cannot be drawn.
    """
    return tuple(_parse_size(text.strip()) for text in more_sizes.split(",") if text.strip())


def _parse_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{2,4})(?:\s*[xX]\s*(\d{2,4}))?", text, re.ASCII)
    if found is None:
        raise TrainerError(f'more_sizes has {text!r}: write sizes such as "1536x1024" or "768", with commas between')
    width, height = int(found[1]), int(found[2] or found[1])
    for side in (width, height):
        if side % SIDE_STEP or not MIN_SIDE <= side <= MAX_SIDE:
            raise TrainerError(
                f"more_sizes has {text!r}: sides must be multiples of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE} pixels"
            )
    return width, height


@dataclass(frozen=True, kw_only=True)
class ValidationSettings(PictureSettings, _First):
    """Widgets of Validation Prompts; they are encoded with the system prompt of Cache Text Embeds."""

    held_out_share: float = setting(0.0, minimum=0.0, maximum=0.9, step=0.01, is_optional=True)
    """Share of the pictures kept out of training, at least two, to measure the loss on them; 0 trains on all. A
    picture's content decides, so adding files moves none. Changing it starts a new run."""
    held_out_step_interval: int = setting(100, minimum=0, maximum=1000000, is_optional=True)
    """Optimizer steps between measurements of the held-out loss; each takes as long as 3 passes over the held-out
    pictures in training. 0 measures only at the end. For held_out_share, and folders with is_held_out."""
    keep_best: bool = setting(True, is_optional=True)
    """Keep the weights with the lowest held-out loss as a second file; Save Adapter and Save Model can choose it. For
    held_out_share, and folders with is_held_out."""


@dataclass(frozen=True, kw_only=True)
class ValidateSettings(PictureSettings, _FirstOfValidate):
    """Widgets of Validate."""
