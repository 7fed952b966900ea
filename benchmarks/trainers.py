"""The trainers that are compared: each makes a step for a case, and the loss of a fixed batch before training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.data.cache import TrainingSample
from lumina2_trainer.trainer_core.data.entries import write_entry
from lumina2_trainer.trainer_core.lumina2.name_map import diffusers_config, to_diffusers_state_dict
from lumina2_trainer.trainer_core.lumina2.objective import flow_matching_loss, make_noisy_batch
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.lumina2.transformer import Lumina2Transformer
from lumina2_trainer.trainer_core.training.session import StepPlan, TrainingSession
from lumina2_trainer.trainer_core.training.settings import OptimizerSettings
from torch import Tensor

from .cases import LEARNING_RATE, RANK, SIZES, Case, Sample, make_samples, random_weights

Step = Callable[[], object]
FIXED_TIME = 0.4
"""t of the batch whose loss is compared."""


def make_ours(case: Case, device: torch.device) -> tuple[Step, float]:
    """This project: the session that Train LoRA runs, on cached samples."""
    transformer = _our_transformer(case, device)
    parameters = attach_lora(transformer, LoRASettings(targets="attention"), rank=RANK, alpha=float(RANK), seed=0)
    transformer.gradient_checkpointing = case.has_recomputation
    samples = make_samples(case)
    precision = "bf16" if case.dtype is torch.bfloat16 else "fp32"
    loss = _loss_of_fixed_batch(transformer, samples, case, device)
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, fused=device.type == "cuda")
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    session = TrainingSession(
        transformer=transformer.train(),
        parameters=parameters,
        optimizer=optimizer,
        samples=[_write_sample(folder, i, sample) for i, sample in enumerate(samples)],
        unconditional=samples[0].prompt_embeds,
        plan=StepPlan(
            num_steps=1000,
            batch_size=case.batch_size,
            learning_rate=LEARNING_RATE,
            caption_dropout=0.0,
            seed=0,
            precision=precision,
            optimizer=OptimizerSettings(),
            noise=NoiseSettings(),
        ),
        device=device,
    )
    return session.train_step, loss


def _write_sample(folder: Path, index: int, sample: Sample) -> TrainingSample:
    latents_path, embeds_path = folder / f"{index}-latents.safetensors", folder / f"{index}-embeds.safetensors"
    write_entry(latents_path, sample.latents)
    write_entry(embeds_path, sample.prompt_embeds)
    side = sample.latents.shape[-1] * 8
    return TrainingSample(
        id=str(index),
        file_name=str(index),
        latents_path=latents_path,
        embeds_path=embeds_path,
        caption="",
        width=side,
        height=side,
        repeats=1,
    )


def _our_transformer(case: Case, device: torch.device) -> Lumina2Transformer:
    with torch.device("meta"):
        transformer = Lumina2Transformer(SIZES[case.size])
    transformer.load_state_dict(random_weights(case, device), assign=True)
    return transformer.requires_grad_(False)


def _fixed_noise(samples: list[Sample]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(sample.latents.shape, generator=generator) for sample in samples]


@torch.no_grad()
def _loss_of_fixed_batch(
    transformer: Lumina2Transformer, samples: list[Sample], case: Case, device: torch.device
) -> float:
    batch = make_noisy_batch(
        [sample.latents for sample in samples],
        _fixed_noise(samples),
        torch.full((len(samples),), FIXED_TIME),
        [sample.prompt_embeds for sample in samples],
        transformer.config.axes_dims,
        device,
    )
    with _autocast(case, device):
        return flow_matching_loss(transformer, batch).mean().item()


def _autocast(case: Case, device: torch.device) -> torch.autocast | nullcontext[None]:
    return nullcontext() if case.dtype is torch.float32 else torch.autocast(device.type, case.dtype)


def make_diffusers(case: Case, device: torch.device) -> tuple[Step, float]:
    """diffusers' network with peft, trained as in examples/dreambooth/train_dreambooth_lora_lumina2.py."""
    from diffusers import Lumina2Transformer2DModel
    from peft import LoraConfig

    config = SIZES[case.size]
    with device:  # not on the meta device: its rotary tables are computed when it is built
        transformer = Lumina2Transformer2DModel(**diffusers_config(config))
    transformer.load_state_dict(to_diffusers_state_dict(random_weights(case, device), config), assign=True)
    transformer.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    transformer.train()
    if case.has_recomputation:
        transformer.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=device.type == "cuda")
    samples = make_samples(case)
    latents = torch.stack([sample.latents for sample in samples]).to(device)
    embeds = torch.nn.utils.rnn.pad_sequence([s.prompt_embeds for s in samples], batch_first=True)
    embeds = embeds.to(device, case.dtype)
    lengths = torch.tensor([len(sample.prompt_embeds) for sample in samples])
    mask = (torch.arange(embeds.shape[1]) < lengths[:, None]).to(device)

    def loss_of(noise: Tensor, t_B: Tensor) -> Tensor:
        t = t_B.view(-1, 1, 1, 1)
        noisy = ((1 - t) * noise + t * latents).to(case.dtype)
        with _autocast(case, device):
            velocity = transformer(noisy, t_B, embeds, mask, return_dict=False)[0]
        return (velocity.float() - (latents - noise)).square().mean()

    def step() -> None:
        loss = loss_of(torch.randn_like(latents), torch.sigmoid(torch.randn(len(samples), device=device)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with torch.no_grad():
        noise = torch.stack(_fixed_noise(samples)).to(device)
        loss = loss_of(noise, torch.full((len(samples),), FIXED_TIME, device=device)).item()
    return step, loss


TRAINERS: dict[str, Callable[[Case, torch.device], tuple[Step, float]]] = {
    "ours": make_ours,
    "diffusers": make_diffusers,
}
"""By name."""
