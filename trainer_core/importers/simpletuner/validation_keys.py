"""Keys of validation: pictures, their scores, and the loss on held-out pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from .rules import (
    Options,
    Outcome,
    Parse,
    Rules,
    by,
    count,
    flag,
    holds,
    ignored,
    lines,
    number,
    one_of,
    text,
    to,
    whole,
)

SIDE = 16
"""Pixels that a validation picture's sides are multiples of."""
CLIP_MODEL = "openai/clip-vit-large-patch14"
CLIP_MODELS = {"": CLIP_MODEL, f"{CLIP_MODEL}-336": CLIP_MODEL}
"""What is taken in the place of SimpleTuner's default."""
NO_PICTURES = "no validation pictures are asked for"
SWITCHES = ("", "true", "false", "none", "0", "1", "yes", "no")
"""Texts in the place of a prompt library that name no file."""


def has_prompts(options: Options) -> bool:
    """Whether validation pictures are drawn."""
    has_any = bool(lines(text(options, "validation_prompt"))) or any(_library_name(options, key) for key in LIBRARIES)
    return has_any and not flag(options, "validation_disable")


def measures_held_out(options: Options) -> bool:
    """Whether the loss is measured on pictures that are not trained on."""
    return holds(options.backends, "eval") and not flag(options, "eval_loss_disable")


def _drawn(convert: Callable[[Options, str], Outcome]) -> Callable[[Options, str], Outcome]:
    """Only where pictures are drawn."""
    return lambda options, key: convert(options, key) if has_prompts(options) else Outcome(note=NO_PICTURES)


def _drawn_as(target: str, parse: Parse) -> Callable[[Options, str], Outcome]:
    return _drawn(lambda options, key: Outcome(values={target: parse(options, key)}))


def _prompt(options: Options, key: str) -> Outcome:
    prompt = " ".join(lines(text(options, key)).split("\n"))
    return Outcome(values={"validation.prompts": prompt}) if prompt else Outcome(note="empty")


LIBRARIES = ("user_prompt_library", "validation_prompt_library")
"""Keys that name a prompt library, the first that does counting."""


def _library_name(options: Options, key: str) -> str:
    value = options.get(key)
    if isinstance(value, bool) or text(options, key).strip().lower() in SWITCHES:
        return ""
    return PurePosixPath(text(options, key).strip().replace("\\", "/")).name


def _library(options: Options, key: str) -> Outcome:
    name = _library_name(options, key)
    chosen = next((other for other in LIBRARIES if _library_name(options, other)), key)
    if name and chosen != key:
        return Outcome(note=f"{chosen} takes its place")
    if name:
        return Outcome(values={"validation.prompt_library": name}, note="put the file into ComfyUI's input folder")
    if flag(options, key):
        return Outcome(note="SimpleTuner's own prompts are not part of this pack: name a file in prompt_library")
    return Outcome(note="off")


def _resolution(options: Options, key: str) -> Outcome:
    written = [part.strip().lower() for part in text(options, key).split(",")]
    try:
        sizes = [[float(side) for side in (size if "x" in size else f"{size}x{size}").split("x")] for size in written]
        rounded = [(max(64, round(w / SIDE) * SIDE), max(64, round(h / SIDE) * SIDE)) for w, h in sizes]
    except (ValueError, OverflowError):
        raise options.error(key, 'a size such as "1024x1024", or several with commas between') from None
    values: dict[str, object] = {"validation.width": rounded[0][0], "validation.height": rounded[0][1]}
    if len(rounded) > 1:
        values["validation.more_sizes"] = ", ".join(f"{width}x{height}" for width, height in rounded[1:])
    is_on_grid = [list(size) for size in rounded] == sizes
    return Outcome(values=values, note="" if is_on_grid else f"the nearest multiples of {SIDE}, at least 64")


def _seed(options: Options, key: str) -> Outcome:
    value = options.get(key)
    source = key if value is not None else "seed"
    if options.get(source) is None or whole(options, source) < 0:
        return Outcome(note="no seed is written: 42 is taken")
    return Outcome(values={"validation.seed": whole(options, source)}, note="" if source == key else "as seed")


def _guidance_rescale(options: Options, key: str) -> Outcome:
    rescale = number(options, key)
    if rescale == 0:
        return Outcome(note="0 changes nothing")
    if number(options, "validation_guidance") == 1:
        return Outcome(note="validation_guidance is 1, so there is nothing to rescale")
    return Outcome(values={"validation.guidance_rescale": rescale}, note="in SimpleTuner it has no effect on Lumina2")


def _evaluation(options: Options, key: str) -> Outcome:
    if not one_of({"": False, "none": False, "clip": True})(options, key):
        return Outcome(note="off")
    wanted = text(options, "pretrained_evaluation_model_name_or_path").strip()
    model = CLIP_MODELS.get(wanted, wanted)
    notes = ["the one of 224 pixels, which comes as safetensors"] if model != wanted else []
    notes += ["needs pip install torchmetrics", "a repository is downloaded at the first run"]
    return Outcome(values={"validation.clip_model": model}, note="; ".join(notes))


def _evaluation_model(options: Options, key: str) -> Outcome:
    if text(options, "evaluation_type").strip().lower() == "clip":
        return Outcome(values={"validation": ""}, note="read together with evaluation_type")
    return Outcome(note="evaluation_type is not clip")


def _held_out_interval(options: Options, key: str) -> Outcome:
    interval = count(options, key)
    if flag(options, "eval_loss_disable"):
        return Outcome(note="eval_loss_disable is on")
    if not measures_held_out(options):
        return Outcome(
            note="without a data backend of dataset_type eval it does nothing there either; here held_out_share of"
            " Validation Prompts measures"
        )
    note = "" if interval else "0 measures at the end alone"
    return Outcome(values={"validation.held_out_step_interval": interval}, note=note)


PICTURE_KEYS: Rules = {
    "validation_prompt": by(_drawn(_prompt), "validation.prompts"),
    "validation_negative_prompt": to(
        "validation.negative_prompt", lambda o, k: lines(text(o, k)), default="blurry, cropped, ugly"
    ),
    "validation_guidance": to("validation.guidance_scale", number, default=7.5),
    "validation_guidance_rescale": by(
        _guidance_rescale, "validation.guidance_rescale", note="in SimpleTuner it has no effect on Lumina2"
    ),
    "validation_num_inference_steps": to("validation.num_inference_steps", whole, default=30),
    "validation_resolution": by(
        _resolution,
        "validation.width",
        "validation.height",
        "validation.more_sizes",
        note="on a grid of 16; further sizes are more_sizes",
        default="256",
    ),
    "validation_seed": by(_seed, "validation.seed", note="seed if not written", default=None),
    "validation_step_interval": to("validation.every_num_steps", count, default=100),
    "validation_disable": by(
        lambda options, key: Outcome(note="no validation pictures" if flag(options, key) else "off"),
        note="true leaves the pictures out",
    ),
    "validation_disable_unconditional": by(
        _drawn_as("validation.draw_unconditional", lambda options, key: not flag(options, key)),
        "validation.draw_unconditional",
        note="the opposite; drawn without guidance here",
        default=False,
    ),
    "validation_prompt_library": by(
        _drawn(_library),
        "validation.prompt_library",
        note="if it names a file, which must lie in ComfyUI's input folder; SimpleTuner's own is not part of this pack",
    ),
    "user_prompt_library": by(
        _drawn(_library),
        "validation.prompt_library",
        note="the file's name; it must lie in ComfyUI's input folder, or in one of --root",
    ),
    "disable_benchmark": by(
        _drawn_as("validation.draw_base", lambda options, key: not flag(options, key)),
        "validation.draw_base",
        note="the opposite",
        default=False,
    ),
    "validation_epoch_interval": ignored("validation is counted in steps: validation_step_interval"),
    "validate_after_*": ignored("the first validation is after validation_step_interval steps"),
    "validation_on_startup": ignored("draw_base of Validation Prompts draws the model before it is trained"),
    "num_validation_images": ignored("one picture a prompt: repeat a prompt for more"),
    "validation_seed_source": ignored("noise is drawn on the CPU, so that KSampler draws the same picture"),
    "validation_randomize": ignored("the same seed each time, so that pictures can be compared"),
    "validation_noise_scheduler": ignored("Euler with shift 6, as KSampler; see schedule of Validation Prompts"),
    "validation_lycoris_strength": ignored("pictures are drawn at strength 1; Validate has strength"),
    "validation_adapter_*": ignored("Validate draws with any adapter"),
    "validation_preview*": ignored("pictures are shown on the Train node when they are finished"),
    "validation_image_*": ignored("pictures are png"),
    "validation_method": ignored("pictures are drawn by the trainer itself"),
    "validation_multigpu": ignored("pictures are drawn by the first GPU"),
    "validation_guidance_skip_*": ignored("skipping layers is not offered"),
    "validation_torch_compile*": ignored("what is fastest is chosen by the machine"),
}
SCORE_KEYS: Rules = {
    "evaluation_type": by(
        _drawn(_evaluation),
        "validation.clip_model",
        note="clip is the model below; needs pip install torchmetrics",
    ),
    "pretrained_evaluation_model_name_or_path": by(
        _drawn(_evaluation_model),
        "validation.clip_model",
        note=f"with evaluation_type clip; {CLIP_MODEL} if not written, downloaded at the first run",
    ),
    "eval_steps_interval": by(
        _held_out_interval,
        "validation.held_out_step_interval",
        note="with a data backend whose dataset_type is eval, without which it does nothing there either",
    ),
    "eval_loss_disable": by(
        lambda options, key: Outcome(note="no held-out loss" if flag(options, key) else "off"),
        note="true leaves out data backends whose dataset_type is eval",
    ),
    "eval_epoch_interval": ignored("the held-out loss is counted in steps: eval_steps_interval"),
    "eval_timesteps": ignored("how many times a held-out picture is measured at is fixed, and always the same ones"),
    "eval_dataset_pooling": ignored("all held-out pictures give one mean, with its interval"),
    "eval_*": ignored("the held-out loss has no such setting"),
    "num_eval_images": ignored("all pictures of a data backend whose dataset_type is eval are measured"),
}
VALIDATION_KEYS: Rules = {**PICTURE_KEYS, **SCORE_KEYS}
