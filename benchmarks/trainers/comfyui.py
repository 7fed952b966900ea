"""ComfyUI's own Train LoRA node as it is since December 2025, called as the host calls it.

It adapts every layer with a weight, norms and biases too, and has no choice of layers. In a batch it runs each
caption on each picture.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cases import LEARNING_RATE, RANK
from ..material import FIXED_TIME, Sample, Setup, fixed_noise, make_samples, random_weights
from ..measure import NUM_STEPS, NUM_WARMUP_STEPS
from .prepared import PreparedTrainer


def train_lora(setup: Setup) -> PreparedTrainer:
    """The node with its own defaults, but rank, learning rate, batch size and recomputation of the case."""
    sys.path.insert(0, str(setup.checkouts.comfyui))
    from comfy.cli_args import args

    args.cpu = setup.device.type == "cpu"
    import comfy.model_management
    import comfy.utils
    from comfy_extras.nodes_train import TrainLoraNode

    model = _build(setup)
    samples = make_samples(setup.case)
    comfy.model_management.in_training = True  # decides which of its kernels run
    loss = sum(_loss(model, *pair, setup) for pair in zip(samples, fixed_noise(samples), strict=True)) / len(samples)
    comfy.model_management.in_training = False
    inputs = _inputs(setup, samples, _wrap(model, setup.device))

    def train(on_step: Callable[[], None]) -> None:
        comfy.utils.set_progress_bar_enabled(False)
        comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = comfy.utils.PROGRESS_THROTTLE_MIN_PERCENT = 0.0
        comfy.utils.set_progress_bar_global_hook(lambda *step, **more: on_step())
        with torch.inference_mode():  # as the host runs every node
            TrainLoraNode.execute(**{name: [value] for name, value in inputs.items()})  # it takes lists

    return PreparedTrainer(loss=loss, train=train)


def _build(setup: Setup) -> Any:
    import comfy.supported_models

    sizes = setup.config
    config = comfy.supported_models.Lumina2(
        {
            "image_model": "lumina2",
            "patch_size": sizes.patch_size,
            "in_channels": sizes.in_channels,
            "dim": sizes.hidden_size,
            "cap_feat_dim": sizes.cap_feat_dim,
            "n_layers": sizes.num_layers,
            "n_refiner_layers": sizes.num_refiner_layers,
            "n_heads": sizes.num_attention_heads,
            "n_kv_heads": sizes.num_kv_heads,
            "qk_norm": True,
            "axes_dims": list(sizes.axes_dims),
            "axes_lens": [300, 512, 512],
        }
    )
    config.set_inference_dtype(setup.case.dtype, None)
    model = config.get_model({}, device=setup.device)
    model.diffusion_model.load_state_dict(random_weights(sizes, setup.case.dtype, setup.device))
    return model


def _wrap(model: Any, device: torch.device) -> Any:
    """The model as a loader gives it to nodes: in host memory, and with the way to make the copy that is trained."""
    import comfy.model_patcher

    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model.to(cpu), load_device=device, offload_device=cpu)

    def make_copy(disable_dynamic: bool = False) -> Any:
        # Of the same weights: nothing else uses them here, and a loader would read them from the file again.
        return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=cpu)

    patcher.cached_patcher_init = (make_copy, ())
    return patcher


@torch.no_grad()
def _loss(model: Any, sample: Sample, noise: Tensor, setup: Setup) -> float:
    """Mean squared error of the velocity; the host's network predicts the clean latents for sigma = 1 - t."""
    device, dtype = setup.device, setup.case.dtype
    latents, noise = sample.latents.to(device)[None], noise.to(device)[None]
    noisy = (1 - FIXED_TIME) * noise + FIXED_TIME * latents
    embeds = sample.prompt_embeds.to(device)[None]
    sigma = torch.full((1,), 1 - FIXED_TIME, device=device)
    with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        predicted = model.apply_model(noisy, sigma, c_crossattn=embeds, num_tokens=embeds.shape[1])
    velocity = (predicted.float() - noisy) / sigma
    return (velocity - (latents - noise)).square().mean().item()


def _inputs(setup: Setup, samples: list[Sample], patcher: Any) -> dict[str, Any]:
    case = setup.case
    precision = "fp32" if case.dtype is torch.float32 else "bf16"
    positive = []
    for sample in samples:
        mask = torch.ones(1, len(sample.prompt_embeds), dtype=torch.long)
        positive.append([sample.prompt_embeds[None], {"attention_mask": mask}])
    return {
        "model": patcher,
        "latents": {"samples": torch.stack([sample.latents for sample in samples])},
        "positive": positive,
        "batch_size": case.batch_size,
        "grad_accumulation_steps": 1,
        "steps": NUM_WARMUP_STEPS + NUM_STEPS,
        "learning_rate": LEARNING_RATE,
        "rank": RANK,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": precision,
        "lora_dtype": precision,
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": case.has_recomputation,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
