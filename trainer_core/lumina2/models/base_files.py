"""Finds the files of a model by what Load Lumina2's widgets say, and checks that they fit together."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

import torch

from ...context import DEMO_DIR, StepContext
from ...errors import TrainerError
from ..encoders.text_files import ALL_IN_ONE_TEXT_PREFIX, find_text_files
from ..encoders.vae import ALL_IN_ONE_VAE_PREFIX, check_vae
from ..network.transformer import Lumina2Transformer
from ..quant.precision import PRECISIONS, check_device
from ..weights.weight_files import read_weights
from ..weights.weight_reader import read_ahead
from .checkpoint import fingerprint_files, inspect_transformer, load_transformer, read_config
from .model_files import LoadSettings, Lumina2Model

DEMO_BASE = "demo"
DEMO_MODEL_PATH = DEMO_DIR / "lumina2-demo.safetensors"
FROM_BASE = "from base"

BASE_KINDS = ("checkpoints", "diffusion_models", "diffusers")
TEXT_ENCODER_KINDS = ("text_encoders", "checkpoints", "diffusers")
VAE_KINDS = ("vae", "checkpoints", "diffusers")
"""Where a part may lie: the one inside an all-in-one file or diffusers folder serves another base too."""


def find_model_files(settings: LoadSettings, *, context: StepContext) -> Lumina2Model:
    """Find the three parts of a model and check names, shapes and sizes from the headers alone.

    Args:
        settings: Widgets of Load Lumina2.
        context: Where model files lie.

    Raises:
        TrainerError: A file is missing, damaged or of another model, or the parts do not fit together.
    """
    base_path = _find_base(settings.base, context)
    text_encoder_path = _find_part(settings.text_encoder, base_path, TEXT_ENCODER_KINDS, "text_encoder", context)
    vae_path = _find_part(settings.vae, base_path, VAE_KINDS, "vae", context)
    config = read_config(base_path)
    if base_path.is_file():
        _refuse_missing_parts(base_path, settings)
    sizes = find_text_files(text_encoder_path).sizes
    check_vae(vae_path)
    if sizes.hidden_size != config.cap_feat_dim:
        raise TrainerError(
            f"text_encoder {text_encoder_path.name} is {sizes.hidden_size} wide but base {base_path.name} reads"
            f" {config.cap_feat_dim}: choose the text encoder of this base"
        )
    return Lumina2Model(
        base_path=str(base_path),
        text_encoder_path=str(text_encoder_path),
        vae_path=str(vae_path),
        precision=settings.precision,
        text_attention=settings.text_attention,
        fingerprint=fingerprint_files([base_path, text_encoder_path, vae_path]),
        name=base_path.name,
    )


def expect_base_transformer(model: Lumina2Model) -> None:
    """`load_base_transformer` will be called soon: have its file read meanwhile.

    Raises:
        TrainerError: Its file is no longer a whole Lumina2 transformer.
    """
    _, plan = inspect_transformer(Path(model.base_path))
    read_ahead(itertools.chain(*plan.values()))


def load_base_transformer(
    model: Lumina2Model, device: torch.device, *, host_blocks: Collection[int] = ()
) -> Lumina2Transformer:
    """The transformer of a model in the model's precision, frozen.

    Args:
        model: Its files.
        device: Where it goes.
        host_blocks: See `load_transformer`.

    Raises:
        TrainerError: Its file is no longer a whole Lumina2 transformer, or the device cannot store it so.
    """
    check_device(model.precision, device)
    precision = PRECISIONS[model.precision]
    return load_transformer(
        Path(model.base_path),
        device=device,
        dtype=precision.dtype,
        matrix_dtype=precision.matrix_dtype,
        host_blocks=host_blocks,
    )


def _find_base(name: str, context: StepContext) -> Path:
    if name != DEMO_BASE:
        return context.find_model(BASE_KINDS, name, "base")
    if not DEMO_MODEL_PATH.is_file():
        raise TrainerError(f"base {name!r} is not part of this copy: {DEMO_MODEL_PATH} is missing; install it again")
    return DEMO_MODEL_PATH


def _refuse_missing_parts(base_path: Path, settings: LoadSettings) -> None:
    names = read_weights(base_path).tensors
    parts = {
        "text_encoder": ("text encoder", ALL_IN_ONE_TEXT_PREFIX, settings.text_encoder),
        "vae": ("VAE", ALL_IN_ONE_VAE_PREFIX, settings.vae),
    }
    for setting, (part, prefix, choice) in parts.items():
        if choice == FROM_BASE and not any(name.startswith(prefix) for name in names):
            raise TrainerError(f"base {base_path.name} holds no {part}: choose one in {setting}")


def _find_part(name: str, base_path: Path, kinds: tuple[str, ...], what: str, context: StepContext) -> Path:
    return base_path if name == FROM_BASE else context.find_model(kinds, name, what)
