"""The loss of rolled samples with ReflexFlow, against one sample written out."""

from __future__ import annotations

from dataclasses import replace

import torch
from lumina2_trainer.trainer_core.lumina2.losses import Reflection
from lumina2_trainer.trainer_core.lumina2.network.layout import PaddedLengths
from lumina2_trainer.trainer_core.lumina2.objective import flow_matching_loss, make_noisy_batch, predict_velocity
from torch import Tensor

from .tiny_models import CPU, TINY, random_samples, tiny_transformer

SIZES = [(3, 6, 10), (5, 8, 4)]


def random_batch(padded: PaddedLengths | None = None):
    latents, embeds, timesteps_B = random_samples(SIZES)
    noise = [x.flip(-1) for x in latents]
    return make_noisy_batch(latents, noise, timesteps_B, embeds, TINY.axes_dims, CPU, padded)


def reflect(target_TC: Tensor, **changes: object) -> Reflection:
    generator = torch.Generator().manual_seed(3)
    fields = {
        "clean_TC": torch.randn(target_TC.shape, generator=generator),
        "direction_TC": torch.randn(target_TC.shape, generator=generator),
        "is_rolled_B": torch.tensor([0.0, 1.0]),
        "alpha": 0.7,
        "beta1": 3.0,
        "beta2": 0.5,
    }
    return Reflection(**{**fields, **changes})  # type: ignore[arg-type]


def test_loss_equals_the_formula_and_other_samples_keep_theirs() -> None:
    transformer, batch = tiny_transformer(seed=1), random_batch()
    reflection = reflect(batch.target_TC)
    loss_B = flow_matching_loss(transformer, replace(batch, reflection=reflection))
    v, target, clean, way = (
        x[15:].flatten()
        for x in (predict_velocity(transformer, batch), batch.target_TC, reflection.clean_TC, reflection.direction_TC)
    )
    change = (clean - v).abs()
    weight = 1 + 0.7 * change / change.mean()
    expected = 0.5 * (weight * (v - target).square()).mean() + 3.0 * (v / v.norm() - way / way.norm()).square().sum()
    torch.testing.assert_close(loss_B[1], expected)
    torch.testing.assert_close(loss_B[0], flow_matching_loss(transformer, batch)[0])


def test_the_weight_is_a_constant_to_the_backward_pass_and_gradients_are_finite() -> None:
    transformer, batch = tiny_transformer(seed=1), random_batch()
    own = predict_velocity(transformer, batch).detach()
    reflection = reflect(batch.target_TC, clean_TC=own, beta1=0.0, beta2=1.0, alpha=1.0)  # no change at all
    flow_matching_loss(transformer, replace(batch, reflection=reflection)).mean().backward()
    actual = transformer.x_embedder.weight.grad
    transformer.zero_grad()
    flow_matching_loss(transformer, batch).mean().backward()
    assert actual is not None and transformer.x_embedder.weight.grad is not None
    torch.testing.assert_close(actual, transformer.x_embedder.weight.grad)


def test_padding_is_not_looked_at() -> None:
    transformer = tiny_transformer(seed=1)
    plain, padded = random_batch(), random_batch(PaddedLengths(caption=8, image=20))
    reflection = reflect(plain.target_TC)
    spread = {}
    for name in ("clean_TC", "direction_TC"):
        first, second = getattr(reflection, name).split([15, 8])
        filler = torch.full((20, 64), 1e3)
        spread[name] = torch.cat([first, filler[15:], second, filler[8:]])
    losses = [
        flow_matching_loss(transformer, replace(plain, reflection=reflection)),
        flow_matching_loss(transformer, replace(padded, reflection=replace(reflection, **spread))),
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
