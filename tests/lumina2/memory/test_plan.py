"""Which plan is chosen for how much memory, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.memory.block_offload import OffloadedInputs
from lumina2_trainer.trainer_core.lumina2.memory.block_swap import SwappedWeights
from lumina2_trainer.trainer_core.lumina2.memory.estimate import Measures, StepEstimate
from lumina2_trainer.trainer_core.lumina2.memory.plan import (
    Budget,
    Freedom,
    MemoryPlan,
    choose_plan,
    relative_time,
    spread,
)
from lumina2_trainer.trainer_core.lumina2.memory.recompute import InputsOnDevice, RecomputeBlocks, WeightsOnDevice
from lumina2_trainer.trainer_core.lumina2.memory.sizes import BatchSize
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, keep_activations
from lumina2_trainer.trainer_core.run.job import parse_memory

from ..tiny_models import CPU, tiny_transformer
from .test_estimate import GIB, H100, measure

BF16 = StepEstimate(
    measure(Lumina2Config(), "attention"),
    BatchSize(caption_tokens=120, image_tokens=4096, is_ragged=False),
    H100,
)
FP8 = replace(BF16, model=measure(Lumina2Config(), "attention", "fp8"))


def budget(gib: float) -> Budget:
    return Budget(num_bytes=gib * GIB, reason=f"{gib:g} GiB allowed", remedy="raise memory")


def plan(estimate: StepEstimate, gib: float, **freedom: bool) -> MemoryPlan:
    return choose_plan(estimate, budget(gib), Freedom(**freedom))


def test_more_memory_never_makes_a_plan_slower_and_every_plan_fits() -> None:
    plans = [(gib, plan(FP8, gib)) for gib in (1.3, 1.6, 2.0, 2.5, 3.0, 3.4, 4.0, 6.0, 9.0, 12.0, 16.0)]
    times = [relative_time(chosen.measures) for _, chosen in plans]
    assert times == sorted(times, reverse=True) and times[-1] == 0 and len(set(times)) >= 10
    assert all(chosen.peak_bytes is not None and chosen.peak_bytes <= gib * GIB for gib, chosen in plans)
    assert all(chosen.peak_bytes > 0.9 * gib * GIB for gib, chosen in plans[:-1])


def test_a_large_card_keeps_everything() -> None:
    chosen = plan(BF16, 20)
    assert chosen.measures == Measures()
    assert chosen.sentence == "memory: 20 GiB allowed, keeping all activations, predicted peak 13.8 GiB"


def test_a_card_of_12_gib_recomputes_some_blocks() -> None:
    chosen = plan(BF16, 11.2)
    assert 0 < chosen.measures.num_recomputed < 15
    assert chosen.measures.num_keeping == chosen.measures.num_recomputed
    assert (chosen.measures.num_offloaded, chosen.measures.swapped) == (0, ())
    kept = 30 - chosen.measures.num_recomputed
    assert chosen.sentence.startswith(f"memory: 11.2 GiB allowed, keeping {kept} of 30 blocks' activations, ")


def test_results_of_attention_and_mlp_are_kept_until_nothing_else_is() -> None:
    chosen = plan(BF16, 6.6)
    assert chosen.measures.num_recomputed == 30 and 10 < chosen.measures.num_keeping < 30
    words = f"computing all activations again, results of attention and MLP kept in {chosen.measures.num_keeping} of 30"
    assert words in chosen.sentence


def test_where_mlps_are_computed_layer_by_layer_only_attention_is_kept() -> None:
    by_layers = replace(BF16, device=replace(H100, is_fused=False))
    chosen, usual = plan(by_layers, 7.0).measures, plan(BF16, 7.0).measures
    assert chosen.num_keeping and not chosen.keeps_feed and usual.keeps_feed
    assert "results of attention kept in" in plan(by_layers, 7.0).sentence
    assert relative_time(chosen) > relative_time(replace(chosen, keeps_feed=True))


def test_without_a_way_to_move_mlps_are_sliced() -> None:
    measures = plan(BF16, 5.75, move=False).measures
    assert (measures.num_recomputed, measures.feed_slice) == (30, 2048)


def test_inputs_move_before_weights_do() -> None:
    measures = plan(BF16, 5.7).measures
    assert measures.num_offloaded > 0 and measures.swapped == ()


def test_2_gib_are_enough_for_fp8_with_some_blocks_swapped() -> None:
    chosen = plan(FP8, 2.0)
    assert 3 <= len(chosen.measures.swapped) <= 20 and chosen.measures.num_recomputed == 30
    assert "blocks swapped with host memory" in chosen.sentence


def test_too_little_memory_says_how_much_is_needed() -> None:
    with pytest.raises(
        TrainerError, match=r"0\.5 GiB allowed, but training takes at least \d\.\d GiB: raise memory, or l"
    ):
        plan(FP8, 0.5)
    with pytest.raises(TrainerError, match="or choose precision fp8, int8 or nf4 in Load Lumina2"):
        plan(BF16, 0.5)


def test_what_is_forbidden_is_not_done() -> None:
    with pytest.raises(TrainerError, match="turn gradient_checkpointing on"):
        plan(BF16, 8, recompute=False)
    assert plan(BF16, 8, slice_feed=False).measures.feed_slice is None
    assert plan(BF16, 8).measures.num_keeping > 0
    assert plan(BF16, 8, keep_results=False).measures.num_keeping == 0
    assert plan(BF16, 6, move=False, slice_feed=False).measures.num_offloaded == 0
    with pytest.raises(TrainerError, match="at least 5"):
        plan(BF16, 5, move=False)


def test_the_runner_does_what_the_plan_says() -> None:
    transformer = tiny_transformer().requires_grad_(False)
    assert MemoryPlan(measures=Measures(), sentence="").make_runner(transformer, CPU) is keep_activations
    plain = MemoryPlan(measures=Measures(num_recomputed=4, feed_slice=512), sentence="").make_runner(transformer, CPU)
    assert isinstance(plain, RecomputeBlocks) and plain.is_capturable
    assert (plain.num_recomputed, plain.feed_slice) == (4, 512)
    assert isinstance(plain.weights, WeightsOnDevice) and isinstance(plain.inputs, InputsOnDevice)
    keeping = MemoryPlan(measures=Measures(num_recomputed=4, num_keeping=3), sentence="").make_runner(transformer, CPU)
    assert isinstance(keeping, RecomputeBlocks) and (keeping.num_recomputed, keeping.num_keeping) == (4, 3)
    measures = Measures(num_recomputed=7, num_offloaded=6, swapped=(2, 4, 6))
    moving = MemoryPlan(measures=measures, sentence="", input_bytes=1000).make_runner(transformer, CPU)
    assert isinstance(moving, RecomputeBlocks) and not moving.is_capturable
    assert isinstance(moving.weights, SwappedWeights) and moving.weights.indices == [2, 4, 6]
    assert isinstance(moving.inputs, OffloadedInputs)


def test_swapped_blocks_lie_far_apart_and_those_of_captions_come_last() -> None:
    assert spread(4, 30, 2) == (5, 12, 19, 26)
    assert spread(28, 30, 2) == tuple(range(2, 30))
    assert spread(29, 30, 2) == tuple(range(1, 30))
    for count in range(3, 31):
        assert len(set(spread(count, 30, 2))) == count


@pytest.mark.parametrize(("text", "gib"), [("auto", None), (" Auto ", None), ("8", 8.0), ("11.5 GiB", 11.5)])
def test_memory_is_auto_or_a_number(text: str, gib: float | None) -> None:
    assert parse_memory(text) == gib


@pytest.mark.parametrize("text", ["", "much", "0", "-3", "1e99x", "nan"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(TrainerError, match=r'memory is .*write "auto", or how many GiB'):
        parse_memory(text)
