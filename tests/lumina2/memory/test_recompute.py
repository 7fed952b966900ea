"""Recomputed blocks: the same gradients in the memory they should take."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.memory.kept_results import attention_kernels
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.memory.rng_autocast import Conditions, draws_random_numbers
from lumina2_trainer.trainer_core.lumina2.network.transformer import (
    BlockRunner,
    Lumina2Config,
    Lumina2Transformer,
    keep_activations,
)
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from ..tiny_models import CPU, random_samples, run_packed, tiny_transformer
from .simulated_gpu import simulate_step

SAMPLES = random_samples([(5, 6, 10), (1, 4, 4), (11, 8, 6), (299, 2, 14)])
STREAM = (4096 + 120) * 2304 * 2
"""Bytes of the residual stream of one sample of 1024 x 1024 in bf16."""


class CountCalls(TorchDispatchMode):
    """Counts what is computed by some operators."""

    def __init__(self, operators: list[OpOverload]) -> None:
        super().__init__()
        self.operators, self.num_calls = operators, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += func in self.operators
        return func(*args, **(kwargs or {}))


def gradients(transformer: Lumina2Transformer, run_block: BlockRunner) -> dict[str, Tensor]:
    """Of the trainable parameters, after one pass over the samples."""
    transformer.zero_grad()
    transformer.run_block = run_block
    torch.manual_seed(5)
    outputs = run_packed(transformer, *SAMPLES)
    torch.cat([out.flatten() for out in outputs]).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


def adapted(targets: str, dropout: float = 0.0) -> Lumina2Transformer:
    """A tiny network with an adapter whose every part matters."""
    transformer = tiny_transformer().train()
    for parameter in attach_lora(
        transformer, LoRASettings(targets=targets, dropout=dropout), rank=2, alpha=2.0, seed=0
    ).values():
        parameter.data.fill_(0.1)
    return transformer


@pytest.mark.parametrize("feed_slice", [None, 16])
@pytest.mark.parametrize("num_recomputed", [3, 100])
def test_recomputed_blocks_give_the_same_gradients(num_recomputed: int, feed_slice: int | None) -> None:
    transformer = tiny_transformer()
    expected = gradients(transformer, keep_activations)
    actual = gradients(transformer, RecomputeBlocks(num_recomputed=num_recomputed, feed_slice=feed_slice))
    assert len(expected) == len(list(transformer.parameters()))
    tolerance = 0 if feed_slice is None else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("num_recomputed", "num_keeping"), [(3, 2), (7, 7), (7, 4)])
@pytest.mark.parametrize("targets", ["attention", "attention_mlp_modulation"])
def test_kept_results_give_the_same_gradients(targets: str, num_recomputed: int, num_keeping: int) -> None:
    transformer = adapted(targets)
    expected = gradients(transformer, keep_activations)
    actual = gradients(transformer, RecomputeBlocks(num_recomputed=num_recomputed, num_keeping=num_keeping))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_attention_whose_result_is_kept_is_computed_once() -> None:
    transformer = adapted("attention")
    assert len(transformer.blocks) == 7
    calls = []
    for num_keeping in (0, 4, 7):
        with CountCalls(attention_kernels()) as counter:
            gradients(transformer, RecomputeBlocks(num_recomputed=7, num_keeping=num_keeping))
        calls.append(counter.num_calls)
    assert calls == [14, 10, 7]


@pytest.mark.parametrize("targets", ["attention", "attention_mlp", "attention_mlp_modulation", "all_linear"])
def test_gradients_of_adapters_are_the_same(targets: str) -> None:
    transformer = adapted(targets)
    expected = gradients(transformer, keep_activations)
    actual = gradients(transformer, RecomputeBlocks(num_recomputed=4, feed_slice=32))
    assert set(actual) == set(expected) and len(expected) >= 14
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_adapter_of_some_layers_of_some_blocks_gets_its_gradients() -> None:
    transformer = tiny_transformer()
    settings = LoRASettings(targets="pattern", target_pattern=r"(context_refiner\.1|layers\.1)\.feed_forward\.w[12]")
    attach_lora(transformer, settings, rank=2, alpha=2.0, seed=0)
    for parameter in transformer.parameters():
        parameter.data.mul_(1.0 if parameter.any() else 0).add_(0.01 if parameter.requires_grad else 0)
    expected = gradients(transformer, keep_activations)
    actual = gradients(transformer, RecomputeBlocks(num_recomputed=100))
    assert len(expected) == 8
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("feed_slice", [None, 16])
def test_recomputed_blocks_repeat_dropout(feed_slice: int | None) -> None:
    transformer = adapted("attention_mlp", dropout=0.5)
    by_slice = [
        gradients(transformer, RecomputeBlocks(num_recomputed=num_recomputed, feed_slice=feed_slice))
        for num_recomputed in (1, 100)
    ]
    if feed_slice is None:
        torch.testing.assert_close(by_slice[1], by_slice[0], rtol=0, atol=0)
        torch.testing.assert_close(by_slice[1], gradients(transformer, keep_activations), rtol=0, atol=0)
    # Two backward passes from one seed are equal only if the second computations draw what the first did.
    repeated = gradients(transformer, RecomputeBlocks(num_recomputed=100, feed_slice=feed_slice))
    torch.testing.assert_close(by_slice[1], repeated, rtol=0, atol=0)


def test_random_states_are_left_alone_without_dropout() -> None:
    transformer = adapted("attention_mlp")
    with (
        mock.patch.object(torch, "get_rng_state", side_effect=AssertionError),
        mock.patch.object(torch, "set_rng_state", side_effect=AssertionError),
    ):
        gradients(transformer, RecomputeBlocks(num_recomputed=100))


def test_dropout_is_found_where_it_is_active() -> None:
    block = adapted("attention", dropout=0.5).layers[0]
    assert draws_random_numbers(block)
    assert not draws_random_numbers(block.eval())
    assert not draws_random_numbers(adapted("attention").layers[0])


def test_dropout_of_an_adapter_that_replaces_forward_is_found() -> None:
    class Adapter(nn.Module):
        """As LyCORIS attaches itself."""

        rank_dropout = 0.1

        def forward(self, x: Tensor) -> Tensor:
            return x

    layer, adapter = nn.Linear(2, 2), Adapter()
    layer.forward = adapter.forward  # type: ignore[method-assign]
    assert draws_random_numbers(nn.Sequential(layer))
    assert not draws_random_numbers(nn.Sequential(layer).eval()) or adapter.training


@pytest.mark.parametrize("has_cache", [True, False])
def test_autocast_is_entered_again_as_it_was(has_cache: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=has_cache):
        conditions = Conditions.now(CPU, is_random=False)
    with conditions.restored():
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
        assert torch.is_autocast_cache_enabled() is has_cache


def test_a_recomputed_block_keeps_its_input_alone() -> None:
    kept = [
        simulate_step(Lumina2Config(num_layers=n), run_block=RecomputeBlocks(num_recomputed=100)).kept for n in (1, 3)
    ]
    assert (kept[1] - kept[0]) / (2 * STREAM) == pytest.approx(1, abs=0.01)


def test_a_recomputed_block_with_results_keeps_two_streams_more() -> None:
    kept = [
        simulate_step(Lumina2Config(num_layers=n), run_block=RecomputeBlocks(num_recomputed=100, num_keeping=100)).kept
        for n in (1, 3)
    ]
    assert (kept[1] - kept[0]) / (2 * STREAM) == pytest.approx(3 + 24 * 4 / 4608, abs=0.01)


@pytest.mark.parametrize(("feed_slice", "streams"), [(None, 23.2), (2048, 13.2), (1024, 11.2), (512, 9.9)])
def test_working_set_of_a_recomputed_block(feed_slice: int | None, streams: float) -> None:
    run_block = RecomputeBlocks(num_recomputed=100, feed_slice=feed_slice)
    peak = simulate_step(Lumina2Config(num_layers=3), run_block=run_block)
    assert (peak.total - peak.kept) / STREAM <= streams
    if feed_slice is not None:
        assert peak.forward <= peak.total
