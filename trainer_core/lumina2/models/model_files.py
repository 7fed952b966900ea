"""Which files a Lumina2 model is made of: what travels on the LUMINA2_MODEL socket."""

from __future__ import annotations

from dataclasses import dataclass

from ...settings import check_settings, setting
from ..encoders.text_encoder import TEXT_ATTENTIONS
from ..quant.precision import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Widgets of Load Lumina2."""

    base: str = setting("demo")
    """The model to train: an all-in-one file, a transformer file, a diffusers folder, or "demo", the tiny model in this
    pack."""
    text_encoder: str = setting("from base")
    """The Gemma2 file. "from base" takes it from the all-in-one file or diffusers folder."""
    vae: str = setting("from base")
    """The VAE file. "from base" takes it from the all-in-one file or diffusers folder."""
    precision: str = setting("bf16", choices=PRECISIONS)
    """Precision of the frozen base and of the computation. fp32 is exact and takes twice the memory of bf16; fp8 and
    int8 take half: fp8 computes in 8 bits from RTX 40 on, int8 from RTX 30 on and with a smaller error. nf4 takes less
    than a third, computes in bf16 and is the least exact. Adapters are float32 always."""
    text_attention: str = setting("comfyui", choices=TEXT_ATTENTIONS)
    """How Gemma2 computes attention: "comfyui" as ComfyUI does when you generate (no soft cap), "original" as diffusers
    and the original training code do."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class Lumina2Model:
    """The files of one model and how to run them; holds no weights."""

    base_path: str
    """All-in-one or transformer `.safetensors`, or a diffusers folder."""
    text_encoder_path: str
    """`.safetensors` with Gemma2 (may be the base itself) or a diffusers folder."""
    vae_path: str
    """`.safetensors` with the VAE (may be the base itself) or a diffusers folder."""
    precision: str = "bf16"
    text_attention: str = "comfyui"
    fingerprint: str = ""
    """Identifies the weights of all three parts; see `checkpoint.fingerprint_files`."""
    name: str = ""
    """File name without folders, for metadata and reports."""
