"""One function per node: settings and sockets in, a socket value out.

Nodes and the headless runner call these and nothing else of the core. What trains and draws is imported when it is
called, so that ComfyUI starts quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.export import ADAPTER_DTYPES, ADAPTER_FORMATS, read_adapter, write_adapter
from ..context import StepContext
from ..data.cache import EmbedCache, LatentCache
from ..data.cache_latents import PictureEncoder, fill_latent_cache
from ..data.entry_writer import AUTOMATIC_BATCH_SIZE
from ..data.folder import Dataset, DatasetFolderSettings, open_dataset
from ..dataset_report import DatasetReport, report_dataset
from ..device import free_memory
from ..files import find_free_path
from ..lumina2.encoders.prompts import CUSTOM, SYSTEM_PROMPTS, UNCONDITIONAL, check_system_prompt, resolve_system_prompt
from ..lumina2.models.base_files import find_model_files
from ..lumina2.models.model_files import LoadSettings, Lumina2Model
from ..lumina2.models.save import MODEL_LAYOUTS
from ..lumina2.quant.precision import PRECISIONS
from ..out_of_memory import explained_out_of_memory
from ..results import ValidationResult
from ..run.folder import RunFolder, choose_file
from ..run.job import Adapter
from ..scores import describe_run_losses
from ..settings import check_file_name, check_settings, setting
from ..validation.clip_report import describe_clip_scores, report_clip_scores
from ..validation.pictures import with_files, with_prompt_library
from ..validation.settings import ValidateSettings, ValidationSettings
from ..weight_names import LIVE, WEIGHTS

BOTH_FORMATS = "both"


@dataclass(frozen=True, kw_only=True)
class CacheLatentsSettings:
    """Widgets of Cache Latents."""

    batch_size: int = setting(AUTOMATIC_BATCH_SIZE, minimum=AUTOMATIC_BATCH_SIZE, maximum=256)
    """Pictures of equal size encoded at once; 0 takes what is fastest and fits in memory. Pictures of 1024 x 1024 need
    about 3 GiB each."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class CacheTextEmbedsSettings:
    """Widgets of Cache Text Embeds."""

    system_prompt: str = setting("superior", choices=(*SYSTEM_PROMPTS, CUSTOM))
    """Text put before every caption; use the one your base model was trained with, and the same when you generate.
    "anime" suits Neta and NetaYume Lumina; "none" adds nothing."""
    custom_system_prompt: str = setting("", multiline=True)
    """The system prompt when system_prompt is "custom"."""
    batch_size: int = setting(AUTOMATIC_BATCH_SIZE, minimum=AUTOMATIC_BATCH_SIZE, maximum=1024)
    """Most captions encoded at once; 0 takes as many as are fastest, by their length."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_system_prompt(self.system_prompt, self.custom_system_prompt)


@dataclass(frozen=True, kw_only=True)
class SaveAdapterSettings:
    """Widgets of Save Adapter."""

    name: str = setting("my_lora")
    """File name without ending; a number is added so that no file is ever overwritten."""
    format: str = setting("comfyui", choices=(*ADAPTER_FORMATS, BOTH_FORMATS))
    """Naming of the weights: "comfyui" for ComfyUI and most tools, "diffusers" for Lumina2Pipeline, "both" writes two
    files."""
    dtype: str = setting("bf16", choices=ADAPTER_DTYPES)
    """Precision of the saved weights; bf16 halves the file without a visible difference."""
    weights: str = setting(LIVE, choices=WEIGHTS, is_optional=True)
    """"live" is the adapter as trained, "ema" its running average (use_ema of Checkpoints and EMA), "best" what had
    the lowest held-out loss (held_out_share of Validation Prompts, is_held_out of Dataset Folder)."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_file_name("name", self.name)


@dataclass(frozen=True, kw_only=True)
class SaveModelSettings:
    """Widgets of Save Model."""

    name: str = setting("my_model")
    """File name without ending; a number is added so that no file is ever overwritten."""
    layout: str = setting("all-in-one", choices=MODEL_LAYOUTS)
    """"all-in-one" holds text encoder and VAE too and opens in Load Checkpoint (11 GB), "transformer" opens in Load
    Diffusion Model (5 GB), "diffusers" is a folder for Lumina2Pipeline (11 GB)."""
    dtype: str = setting("bf16", choices=ADAPTER_DTYPES)
    """Precision of the transformer's weights; text encoder and VAE stay as they are."""
    weights: str = setting(LIVE, choices=WEIGHTS, is_optional=True)
    """"live" is the model as trained, "ema" its running average (use_ema of Checkpoints and EMA), "best" what had
    the lowest held-out loss (held_out_share of Validation Prompts, is_held_out of Dataset Folder)."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_file_name("name", self.name)


def load_lumina2(settings: LoadSettings, *, context: StepContext) -> Lumina2Model:
    """Find and check the model's files, without reading weights."""
    return find_model_files(settings, context=context)


def read_dataset_folder(
    settings: DatasetFolderSettings, *, dataset: Dataset | None = None, context: StepContext
) -> DatasetReport:
    """Read a folder and report on it; `dataset` is an earlier one to add to."""
    return report_dataset(open_dataset(settings, earlier=dataset, context=context), context)


@explained_out_of_memory(
    "encoding pictures", ["set batch_size of Cache Latents to 1", "lower the resolution of the dataset"]
)
def cache_latents(
    settings: CacheLatentsSettings, *, model: Lumina2Model, dataset: Dataset, context: StepContext
) -> LatentCache:
    """Encode every picture that is not cached yet."""

    def load_encoder() -> PictureEncoder:
        context.before_encoding()
        from ..lumina2.latent_encoder import load_latent_encoder

        return load_latent_encoder(Path(model.vae_path), device=context.device)

    try:
        return fill_latent_cache(
            dataset,
            load_encoder=load_encoder,
            encoder_fingerprint=model.fingerprint,
            dtype=PRECISIONS[model.precision].dtype,
            batch_size=settings.batch_size,
            context=context,
        )
    finally:
        free_memory(context.device)


@explained_out_of_memory("encoding captions", ["set batch_size of Cache Text Embeds to 1"])
def cache_text_embeds(
    settings: CacheTextEmbedsSettings,
    *,
    model: Lumina2Model,
    dataset: Dataset,
    validation: ValidationSettings | None = None,
    context: StepContext,
) -> EmbedCache:
    """Encode every caption, the validation prompts and the unconditional prompt that are not cached yet."""
    validation = validation and with_prompt_library(validation, context)
    from ..encode_prompts import encode_prompts

    return encode_prompts(
        model,
        system_prompt=resolve_system_prompt(settings.system_prompt, settings.custom_system_prompt),
        dataset=dataset,
        validation_prompts=validation.prompt_list if validation else (),
        negative_prompt=validation.negative_prompt if validation else UNCONDITIONAL,
        batch_size=settings.batch_size,
        context=context,
    )


def validate(
    settings: ValidateSettings, *, model: Lumina2Model, adapter: Adapter | None = None, context: StepContext
) -> ValidationResult:
    """Draw the prompts with the model and, if given, the adapter."""
    from .validate import draw_validation

    settings = with_files(settings, context)
    images = draw_validation(settings, model, adapter, context)
    report = report_clip_scores(settings, images, context)
    free_memory(context.device)
    texts = [
        describe_clip_scores(report.summary()) if report else "",
        describe_run_losses(RunFolder(path=Path(adapter.run_dir))) if adapter else "",
    ]
    return ValidationResult(images=images, scores="\n".join(filter(None, texts)))


def save_adapter(settings: SaveAdapterSettings, *, adapter: Adapter, context: StepContext) -> tuple[Path, ...]:
    """Write the adapter for ComfyUI, diffusers or both, under a name that is new."""
    content = read_adapter(choose_file(Path(adapter.path), settings.weights))
    folders = {"comfyui": context.loras_dir, "diffusers": context.runs_dir / "diffusers"}
    formats = list(folders) if settings.format == BOTH_FORMATS else [settings.format]
    for name in formats:
        ADAPTER_FORMATS[name](content.tensors)  # costs nothing, and raises before one of two files is written
    return tuple(write_adapter(content, folders[name], settings.name, name, settings.dtype) for name in formats)


def save_model(settings: SaveModelSettings, *, model: Lumina2Model, context: StepContext) -> Path:
    """Write the model in one of the layouts that other programs open, under a name that is new."""
    layout = MODEL_LAYOUTS[settings.layout]
    path = find_free_path(context.model_output_dir(layout.kind), settings.name, layout.ending)
    chosen = replace(model, base_path=str(choose_file(Path(model.base_path), settings.weights)))
    layout.write(chosen, path, ADAPTER_DTYPES[settings.dtype])
    return path
