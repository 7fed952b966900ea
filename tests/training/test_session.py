"""One optimizer step of a session: what the record says of it, and what the optimizer was really given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.session import StepPlan, TrainingSession

from ..lumina2.tiny_models import TINY, tiny_transformer
from .cached_samples import write_sample

CPU = torch.device("cpu")


def new_session(folder: Path, optimizer: OptimizerSettings, *, num_steps: int, learning_rate: float) -> TrainingSession:
    """A LoRA trained by plain gradient descent, whose every step is the learning rate times the gradient."""
    transformer = tiny_transformer(seed=2)
    parameters = attach_lora(transformer, LoRASettings(), rank=2, alpha=2.0, seed=1)
    sizes = [((6, 10), 3), ((8, 4), 5)]
    return TrainingSession(
        transformer=transformer,
        parameters=parameters,
        optimizer=torch.optim.SGD(parameters.values(), lr=1.0),
        samples=[write_sample(folder, i, size, tokens, TINY.cap_feat_dim) for i, (size, tokens) in enumerate(sizes)],
        unconditional=torch.zeros(1, TINY.cap_feat_dim),
        plan=StepPlan(
            num_steps=num_steps,
            batch_size=2,
            learning_rate=learning_rate,
            caption_dropout=0.0,
            seed=5,
            precision="fp32",
            optimizer=optimizer,
            noise=NoiseSettings(),
        ),
        device=CPU,
    )


def test_each_step_takes_the_learning_rate_of_its_own_number(tmp_path: Path) -> None:
    settings = OptimizerSettings(lr_schedule="linear", num_warmup_steps=4, max_grad_norm=0.0)
    session = new_session(tmp_path, settings, num_steps=7, learning_rate=0.2)
    expected = [0.05, 0.1, 0.15, 0.2, 0.2, 0.1, 0.0]  # a rise over four steps, then a fall that ends at the last
    told, taken = [], []
    for _ in expected:
        before = torch.cat([p.detach().flatten().clone() for p in session.parameters.values()])
        record = session.train_step()
        after = torch.cat([p.detach().flatten() for p in session.parameters.values()])
        told.append(record.learning_rate)
        taken.append(((after - before).norm() / record.grad_norm).item())
    assert told == pytest.approx(expected)
    assert taken == pytest.approx(expected, rel=1e-3)


def test_a_step_is_clipped_to_max_grad_norm_and_tells_the_whole_length(tmp_path: Path) -> None:
    steps = []
    for limit in (0.0, 0.01):
        folder = tmp_path / str(limit)
        folder.mkdir()
        session = new_session(folder, OptimizerSettings(max_grad_norm=limit), num_steps=1, learning_rate=1.0)
        before = torch.cat([p.detach().flatten().clone() for p in session.parameters.values()])
        norm = session.train_step().grad_norm
        steps.append((norm, torch.cat([p.detach().flatten() for p in session.parameters.values()]) - before))
    (free_norm, free), (norm, clipped) = steps
    assert norm == free_norm > 0.02
    torch.testing.assert_close(clipped, free * 0.01 / norm, rtol=1e-3, atol=1e-7)


def test_dropout_within_the_network_is_drawn_anew_for_every_position(tmp_path: Path) -> None:
    seeds: list[list[int]] = []
    for _ in range(2):
        session = new_session(tmp_path, OptimizerSettings(), num_steps=3, learning_rate=0.0)
        seeds.append([])
        session.transformer.register_forward_pre_hook(lambda *_: seeds[-1].append(torch.initial_seed()))
        for _ in range(3):
            session.train_step()
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 3
