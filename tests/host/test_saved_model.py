"""What Save Model writes opens in the host's own loaders, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import load_text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.vae import LATENT_SCALE, LATENT_SHIFT, decode_latents, load_vae
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from lumina2_trainer.trainer_core.stages import save
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..lumina2.tiny_files import GEMMA_WIDTH, save_all_in_one, tiny_gemma, tiny_vae, train_spiece
from ..lumina2.tiny_models import CPU, random_samples, relative_error, run_packed
from .checkouts import Host

SCRIPT = Path(__file__).resolve().parent / "script_saved_model.py"
WIDE = Lumina2Config(num_layers=1, cap_feat_dim=GEMMA_WIDTH)
"""The host finds Lumina2 by its width of 2304 and its two refiner blocks; everything else may be small."""


def wide_transformer() -> Lumina2Transformer:
    """One layer of the real width in bfloat16: 0.8 GB."""
    with torch.device("meta"):
        transformer = Lumina2Transformer(WIDE)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2**22, generator=generator)
    state = {}
    for number, (name, parameter) in enumerate(transformer.named_parameters()):
        repeated = noise.roll(1009 * number).repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()]
        scaled = 1 + 0.1 * repeated if parameter.ndim == 1 and "bias" not in name else 0.02 * repeated
        state[name] = scaled.view(parameter.shape).bfloat16()
    transformer.load_state_dict(state, assign=True)
    return transformer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both files of Save Model, inputs, and what our network makes of them."""
    folder = tmp_path_factory.mktemp("wide")
    context = StepContext(output_dir=folder, loras_dir=folder, device=CPU, model_dirs={"checkpoints": (folder,)})
    base = folder / "base.safetensors"
    save_all_in_one(
        base,
        transformer=wide_transformer(),
        text_encoder_state=tiny_gemma().state_dict(),
        spiece_bytes=train_spiece(),
        vae_state=tiny_vae((128, 256, 512, 512), 2).half().state_dict(),
        metadata={},
    )
    model = find_model_files(LoadSettings(base="base.safetensors"), context=context)
    paths = {
        layout: save.save_model(save.SaveModelSettings(layout=layout), model=model, context=context)
        for layout in ("all-in-one", "transformer")
    }
    transformer = load_transformer(base, device=CPU, dtype=torch.float32)
    latents, embeds, timesteps_B = random_samples([(7, 6, 10)], GEMMA_WIDTH)
    vae_latents = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    inputs = {"latents": latents[0], "embeds": embeds[0], "timesteps": timesteps_B, "vae_latents": vae_latents}
    save_file(inputs, folder / "inputs.safetensors")
    with torch.no_grad():
        velocity = run_packed(transformer, latents, embeds, timesteps_B)[0]
    encoder = load_text_encoder(base, device=CPU, dtype=torch.float32, text_attention="comfyui")
    scaled = (vae_latents - LATENT_SHIFT) * LATENT_SCALE
    return {
        "folder": folder,
        "paths": paths,
        "velocity": velocity,
        "text": encoder.encode(["a red chair"])[0],
        "picture": decode_latents(load_vae(base, device=CPU, dtype=torch.float32), scaled),
    }


def test_hosts_loaders_open_the_saved_files_with_the_same_weights(host: Host, saved: dict[str, Any]) -> None:
    paths = saved["paths"]
    arguments = ("--cpu", "--fp32-unet", "--fp32-text-enc", "--fp32-vae")
    answer = host.run(SCRIPT, saved["folder"], paths["all-in-one"], paths["transformer"], host_args=arguments)
    outputs: dict[str, Tensor] = load_file(saved["folder"] / "outputs.safetensors")
    for name in ("all_in_one", "transformer"):
        assert relative_error(outputs[name], saved["velocity"]) < 1e-4, name
    assert relative_error(outputs["text"], saved["text"]) < 1e-3
    assert relative_error(outputs["picture"], saved["picture"]) < 1e-3
    kinds = {kind: Path(path).name for kind, path in answer["folders"].items()}
    assert kinds == {kind: kind for kind in ("checkpoints", "diffusion_models", "diffusers")}
