"""Builds the host's own MODEL, CLIP and VAE from a Lumina2 of any size.

The host's loaders recognise Lumina2 by the width 2304 and refuse every other, such as the demo model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor

from ..trainer_core.errors import TrainerError
from ..trainer_core.lumina2.encoders.text_files import find_text_files
from ..trainer_core.lumina2.encoders.vae import load_vae
from ..trainer_core.lumina2.encoders.vae_names import to_ldm_state_dict
from ..trainer_core.lumina2.encoders.vae_sizes import LATENT_CHANNELS
from ..trainer_core.lumina2.models.checkpoint import load_transformer
from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.lumina2.network.transformer import Lumina2Config
from ..trainer_core.lumina2.quant.precision import PRECISIONS
from ..trainer_core.lumina2.weights.weight_reader import WeightReader
from ..trainer_core.run.job import Adapter
from .host_values import read_lora

CPU = torch.device("cpu")
AXES_LENS = [300, 512, 512]
MLP_MULTIPLE = 256
"""The host rounds the MLP's width up to this."""
STANDARD_VAE_CHANNELS = (128, 256, 512, 512)


def load_host_models(model: Lumina2Model, adapter: Adapter | None, strength: float) -> tuple[Any, Any, Any]:
    """Load everything that ComfyUI needs to draw with this model.

    Args:
        model: Its files.
        adapter: Applied by the host's own LoRA code, if given.
        strength: Strength of the adapter.

    Returns:
        MODEL, CLIP and VAE.
    """
    dtype = PRECISIONS[model.precision].dtype
    host_model = _load_model(Path(model.base_path), dtype)
    if adapter is not None:
        host_model, _ = comfy.sd.load_lora_for_models(host_model, None, read_lora(adapter.path), strength, 0)
    return host_model, _load_clip(Path(model.text_encoder_path), dtype), _load_vae(Path(model.vae_path))


def _load_model(path: Path, dtype: torch.dtype) -> Any:
    transformer = load_transformer(path, device=CPU, dtype=dtype)
    weights = transformer.state_dict()
    config = comfy.supported_models.Lumina2(_host_config(transformer.config))
    supported = list(config.supported_inference_dtypes)
    num_parameters = sum(weight.numel() for weight in weights.values())
    host_dtype = memory.unet_dtype(model_params=num_parameters, supported_dtypes=supported, weight_dtype=dtype)
    device, offload_device = memory.get_torch_device(), memory.unet_offload_device()
    config.set_inference_dtype(host_dtype, memory.unet_manual_cast(host_dtype, device, supported))
    network = config.get_model({}, "")
    devices = {"load_device": device, "offload_device": offload_device}
    if not hasattr(comfy.model_patcher, "CoreModelPatcher"):  # ComfyUI 0.3.64
        network = network.to(offload_device)
        network.load_model_weights(weights, "")
        return comfy.model_patcher.ModelPatcher(network, **devices)
    patcher = comfy.model_patcher.CoreModelPatcher(network, **devices)
    if not memory.is_device_cpu(offload_device):
        network.to(offload_device)
    network.load_model_weights(weights, "", assign=patcher.is_dynamic())
    return patcher


def _host_config(config: Lumina2Config) -> dict[str, Any]:
    host_mlp_size = -(-4 * config.hidden_size // MLP_MULTIPLE) * MLP_MULTIPLE
    if config.mlp_size != host_mlp_size:
        raise TrainerError(
            f"the model's MLP is {config.mlp_size} wide, but ComfyUI's Lumina2 has {host_mlp_size} at width"
            f" {config.hidden_size}: this model can't be used in ComfyUI, only trained"
        )
    return {
        "image_model": "lumina2",
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "dim": config.hidden_size,
        "cap_feat_dim": config.cap_feat_dim,
        "n_layers": config.num_layers,
        "n_refiner_layers": config.num_refiner_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_kv_heads,
        "qk_norm": True,
        "axes_dims": list(config.axes_dims),
        "axes_lens": AXES_LENS,
    }


def _load_clip(path: Path, dtype: torch.dtype) -> Any:
    files = find_text_files(path)
    with WeightReader(files.tensors.values()) as reader:
        weights = {f"model.{n}": reader.read_new(entry, device=CPU, dtype=dtype) for n, entry in files.tensors.items()}
    weights["spiece_model"] = torch.frombuffer(bytearray(files.read_spiece()), dtype=torch.uint8)
    sizes = files.sizes
    options: dict[str, Any] = {
        "gemma2_2b_model_config": {
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size,
            "num_hidden_layers": sizes.num_hidden_layers,
            "num_attention_heads": sizes.num_attention_heads,
            "num_key_value_heads": sizes.num_key_value_heads,
        }
    }
    if dtype is torch.float32:  # the host would store them in half precision
        options["dtype"] = dtype
    return comfy.sd.load_text_encoder_state_dicts([weights], clip_type=comfy.sd.CLIPType.LUMINA2, model_options=options)


def _load_vae(path: Path) -> Any:
    vae = load_vae(path, device=CPU, dtype=torch.float32)
    weights = to_ldm_state_dict(vae.state_dict())
    channels = tuple(vae.config.block_out_channels)
    if channels == STANDARD_VAE_CHANNELS:
        return comfy.sd.VAE(sd=weights)
    config = {
        "double_z": True,
        "z_channels": LATENT_CHANNELS,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": channels[0],
        "ch_mult": [count // channels[0] for count in channels],
        "num_res_blocks": vae.config.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    host_vae = comfy.sd.VAE(
        sd=_with_quant_convs(weights), config={"params": {"ddconfig": config, "embed_dim": LATENT_CHANNELS}}
    )
    host_vae.latent_channels = LATENT_CHANNELS
    return host_vae


def _with_quant_convs(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The host's configurable VAE has 1x1 convolutions around the latents; where a VAE has none, these do nothing."""
    complete = dict(weights)
    for name, channels in (("quant_conv", 2 * LATENT_CHANNELS), ("post_quant_conv", LATENT_CHANNELS)):
        complete.setdefault(f"{name}.weight", torch.eye(channels)[:, :, None, None])
        complete.setdefault(f"{name}.bias", torch.zeros(channels))
    return complete
