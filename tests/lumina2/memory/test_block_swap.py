"""Blocks that visit the device, and inputs that leave it: the same gradients, and everything in its place."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.memory.block_offload import OffloadedInputs
from lumina2_trainer.trainer_core.lumina2.memory.block_swap import SwappedWeights, swappable_tensors, upcoming_positions
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import place_weight
from lumina2_trainer.trainer_core.lumina2.network.transformer import BlockRunner, Lumina2Transformer, keep_activations
from torch import Tensor

from ..tiny_models import CPU, random_samples, run_packed, tiny_transformer

SAMPLES = random_samples([(5, 6, 10), (1, 4, 4), (11, 8, 6)])
INPUT_BYTES = (5 + 15 + 1 + 4 + 11 + 12) * 96 * 4
"""Of the joint sequence of the samples."""


def tiny_with_adapter(matrix_dtype: torch.dtype | None = None, dropout: float = 0.0) -> Lumina2Transformer:
    """A tiny network, in 8 or 4 bits if wanted, with an adapter that is not the identity."""
    transformer = tiny_transformer()
    for name, parameter in list(transformer.named_parameters()):
        place_weight(transformer, name, parameter.data, matrix_dtype=matrix_dtype)
    settings = LoRASettings(targets="attention_mlp", dropout=dropout)
    for parameter in attach_lora(transformer, settings, rank=2, alpha=2.0, seed=0).values():
        parameter.data.fill_(0.1)
    return transformer.train()


def swap(transformer: Lumina2Transformer, indices: list[int], num_offloaded: int = 0) -> RecomputeBlocks:
    """Let these blocks be swapped."""
    blocks = transformer.blocks
    return RecomputeBlocks(
        num_recomputed=len(blocks),
        weights=SwappedWeights({index: blocks[index] for index in indices}, CPU),
        inputs=OffloadedInputs(num_offloaded, INPUT_BYTES, CPU),
    )


def outputs(transformer: Lumina2Transformer) -> Tensor:
    return torch.cat([out.flatten() for out in run_packed(transformer, *SAMPLES)])


def gradients(transformer: Lumina2Transformer, run_block: BlockRunner) -> dict[str, Tensor]:
    """Of two batches added up."""
    transformer.zero_grad()
    transformer.run_block = run_block
    torch.manual_seed(5)
    for _ in range(2):
        outputs(transformer).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("matrix_dtype", [None, torch.float8_e4m3fn, torch.int8, torch.uint8])
@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5, 6], [1, 4, 6], [3]])
def test_swapped_blocks_give_the_same_gradients(indices: list[int], matrix_dtype: torch.dtype | None) -> None:
    transformer = tiny_with_adapter(matrix_dtype)
    expected = gradients(copy.deepcopy(transformer), keep_activations)
    actual = gradients(transformer, swap(transformer, indices))
    assert len(expected) == 70
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_offloaded", [1, 6])
def test_offloaded_inputs_give_the_same_gradients(num_offloaded: int) -> None:
    transformer = tiny_with_adapter(dropout=0.5)
    expected = gradients(copy.deepcopy(transformer), keep_activations)
    actual = gradients(transformer, swap(transformer, [0, 2, 4, 6], num_offloaded))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_inputs_larger_than_foreseen_stay_on_the_device() -> None:
    transformer = tiny_with_adapter()
    inputs = OffloadedInputs(6, 100, CPU)
    expected = gradients(copy.deepcopy(transformer), keep_activations)
    actual = gradients(transformer, RecomputeBlocks(num_recomputed=7, inputs=inputs))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_inputs_of_two_graphs_at_once_do_not_mix() -> None:
    transformer = tiny_with_adapter()
    transformer.run_block = swap(transformer, [1, 2, 3], num_offloaded=6)
    first, second = outputs(transformer), outputs(transformer) * 2
    first.sum().backward()
    second.sum().backward()
    together = {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()
    (3 * outputs(transformer)).sum().backward()
    apart = {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_passes_without_gradients_between_steps_change_nothing() -> None:
    transformer = tiny_with_adapter()
    expected_gradients = gradients(copy.deepcopy(transformer), keep_activations)
    with torch.no_grad():
        expected = outputs(transformer)
    transformer.run_block = swap(transformer, [0, 3, 5], num_offloaded=6)
    with torch.no_grad():
        torch.testing.assert_close([outputs(transformer) for _ in range(3)], [expected] * 3, rtol=0, atol=0)
    torch.testing.assert_close(gradients(transformer, transformer.run_block), expected_gradients, rtol=0, atol=0)


def test_only_frozen_matrices_leave_and_they_are_in_slots_while_in_use() -> None:
    transformer = tiny_with_adapter(torch.float8_e4m3fn)
    block = transformer.layers[0]
    before = {name: (x.data_ptr(), x.clone()) for name, x in block.state_dict().items()}
    weights = SwappedWeights({4: block}, CPU)
    moved = {x.data_ptr() for x in swappable_tensors(block)}
    at_rest = {name: x.data_ptr() for name, x in block.state_dict().items()}
    for name, x in block.state_dict().items():
        is_frozen_matrix = x.ndim == 2 and "lora" not in name
        assert (x.data_ptr() != before[name][0]) == is_frozen_matrix == (x.data_ptr() in moved), name
        assert torch.equal(x.float(), before[name][1].float()), name
    with weights.present(4, "forward"):
        for name, x in block.state_dict().items():
            assert (x.data_ptr() != at_rest[name]) == (at_rest[name] in moved), name
            assert torch.equal(x.float(), before[name][1].float()), name
    assert {name: x.data_ptr() for name, x in block.state_dict().items()} == at_rest


def test_a_failure_in_a_block_leaves_the_model_usable() -> None:
    transformer = tiny_with_adapter()
    with torch.no_grad():
        expected = outputs(transformer)
    runner = swap(transformer, [0, 1, 2, 3, 4, 5, 6], num_offloaded=6)
    transformer.run_block = runner
    with pytest.raises(RuntimeError, match="broken"), runner.weights.present(5, "forward"):
        raise RuntimeError("broken")
    abandoned = outputs(transformer)
    del abandoned
    with torch.no_grad():
        torch.testing.assert_close(outputs(transformer), expected, rtol=0, atol=0)


def test_memory_goes_with_the_model() -> None:
    transformer = tiny_with_adapter()
    transformer.run_block = swap(transformer, [0, 2, 4], num_offloaded=6)
    outputs(transformer).sum().backward()
    parts = (transformer.run_block.weights, transformer.run_block.inputs, transformer)
    alive = [weakref.ref(part) for part in parts]
    del parts, transformer
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3


@pytest.mark.parametrize(
    ("position", "now", "expected"),
    [
        (0, "forward", [1, 2]),
        (3, "forward", [2, 1]),
        (2, "forward", [3, 1]),
        (3, "backward", [2, 1]),
        (1, "backward", [0, 2]),
        (0, "backward", [1, 2]),
        (3, "inference", [0, 1]),
    ],
)
def test_blocks_are_foreseen_in_the_order_of_the_passes(position: int, now: str, expected: list[int]) -> None:
    assert upcoming_positions(position, 4, now, 2) == expected
