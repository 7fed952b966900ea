"""Writing what was trained where users keep their files: Save Adapter and Save Model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.export import ADAPTER_DTYPES, ADAPTER_FORMATS, read_adapter, write_adapter
from ..context import StepContext
from ..files import find_free_path
from ..lumina2.models.model_files import Lumina2Model
from ..lumina2.models.save import MODEL_LAYOUTS
from ..run.folder import choose_file
from ..run.job import Adapter
from ..run_names import LIVE, WEIGHTS
from ..settings import check_file_name, check_settings, setting

BOTH_FORMATS = "both"


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
