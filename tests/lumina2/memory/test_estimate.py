"""Predicted memory against the bytes of a simulated step of real blocks, and against peaks measured on an H100."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.memory.block_swap import swappable_tensors
from lumina2_trainer.trainer_core.lumina2.memory.estimate import Measures, StepEstimate
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.memory.sizes import (
    BatchSize,
    DeviceFacts,
    ModelSize,
    SampleTokens,
    largest_batch,
    measure_model,
)
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import place_weight
from lumina2_trainer.trainer_core.lumina2.network import padding
from lumina2_trainer.trainer_core.lumina2.network.padding import ShapeLimiter
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.quant.precision import PRECISIONS
from lumina2_trainer.trainer_core.training.optim.optimizers import OPTIMIZERS, make_optimizer, state_bytes_on_device
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings

from ..tiny_models import TINY, tiny_transformer
from .simulated_gpu import simulate_step

GIB = 2**30
H100 = DeviceFacts(is_fused=True, workspace_bytes=32 * 2**20)


def measure(config: Lumina2Config, targets: str, precision: str = "bf16", state_size: int = 8) -> ModelSize:
    """Sizes of a model with a LoRA of rank 16."""
    with torch.device("meta"):
        network = Lumina2Transformer(config)
        attach_lora(network, LoRASettings(targets=targets), rank=16, alpha=16.0, seed=0)
    return measure_model(
        network,
        PRECISIONS[precision],
        is_whole=False,
        has_dropout=False,
        state_bytes=lambda numel, itemsize: state_size * numel,
        updates_in_backward=False,
        gradients_stay=False,
    )


@pytest.mark.parametrize("targets", ["attention", "attention_mlp", "attention_mlp_modulation"])
@pytest.mark.parametrize(
    ("resolution", "captions", "measures"),
    [
        (1024, (120,), Measures()),
        (1024, (120,), Measures(num_recomputed=6)),
        (1024, (120,), Measures(num_recomputed=6, num_keeping=6)),
        (1024, (120,), Measures(num_recomputed=6, num_keeping=2)),
        (1024, (120,), Measures(num_recomputed=6, feed_slice=512)),
        (1024, (120,), Measures(num_recomputed=4, feed_slice=1024)),
        (512, (120, 75), Measures(num_recomputed=6, feed_slice=512)),
    ],
)
def test_prediction_equals_a_simulated_step(
    targets: str, resolution: int, captions: tuple[int, ...], measures: Measures
) -> None:
    config = Lumina2Config(num_layers=2)
    run_block = RecomputeBlocks(
        num_recomputed=measures.num_recomputed, feed_slice=measures.feed_slice, num_keeping=measures.num_keeping
    )
    step = simulate_step(config, run_block=run_block, targets=targets, resolution=resolution, caption_lengths=captions)
    batch = BatchSize(
        caption_tokens=sum(captions), image_tokens=(resolution // 16) ** 2 * len(captions), is_ragged=False
    )
    model = measure(config, targets, state_size=0)
    predicted = StepEstimate(model, batch, replace(H100, workspace_bytes=0)).peak(measures)
    assert predicted - step.weights == pytest.approx(step.total, rel=0.05)


def test_results_of_mlps_without_adapters_count_beside_dropout() -> None:
    batch = BatchSize(caption_tokens=120, image_tokens=4096, is_ragged=False)
    kept = {}
    for targets in ("attention", "attention_mlp"):
        model = replace(measure(Lumina2Config(), targets), has_dropout=True)
        estimate = StepEstimate(model, batch, H100)
        peaks = [estimate.peak(Measures(num_recomputed=30, num_keeping=count)) for count in (0, 30)]
        kept[targets] = (peaks[1] - peaks[0]) / (4216 * 2304 * 2)
    assert kept["attention"] == pytest.approx(2 * 26, abs=4)
    assert kept["attention_mlp"] == pytest.approx(26, abs=4)


@pytest.mark.parametrize(
    ("precision", "captions", "resolution", "num_recomputed", "measured"),
    [
        ("bf16", (120,), 1024, 0, 13.72),
        ("bf16", (120, 75), 512, 0, 10.3),
        ("bf16", (120,), 1024, 30, 5.95),
        ("bf16", (120, 75, 200, 40), 1024, 30, 8.98),
        ("fp8", (120,), 1024, 0, 11.73),
    ],
)
def test_prediction_is_within_a_tenth_of_measured_peaks(
    precision: str, captions: tuple[int, ...], resolution: int, num_recomputed: int, measured: float
) -> None:
    batch = BatchSize(
        caption_tokens=sum(captions),
        image_tokens=(resolution // 16) ** 2 * len(captions),
        is_ragged=len(captions) > 1,
    )
    estimate = StepEstimate(measure(Lumina2Config(), "attention", precision), batch, H100)
    assert estimate.peak(Measures(num_recomputed=num_recomputed)) / GIB == pytest.approx(measured, rel=0.1)


def test_moving_things_to_host_memory_lowers_the_prediction_by_their_size() -> None:
    model = measure(Lumina2Config(), "attention", "fp8")
    batch = BatchSize(caption_tokens=120, image_tokens=4096, is_ragged=False)
    estimate = StepEstimate(model, batch, H100)
    recomputed = Measures(num_recomputed=30, feed_slice=1024)
    offloaded = replace(recomputed, num_offloaded=29)
    swapped = replace(offloaded, swapped=tuple(range(2, 30)))
    input_bytes = (4096 + 120) * 2304 * 2
    saved = estimate.peak(recomputed) - estimate.peak(offloaded)
    assert saved == pytest.approx(26 * input_bytes, rel=0.05)  # two are on the device, and captions are short
    assert estimate.peak(offloaded) - estimate.peak(swapped) == 26 * model.blocks[-1].matrix_bytes
    assert estimate.peak(swapped) < 1.2 * GIB


def test_8_bit_matrices_take_half_the_bytes() -> None:
    halves = [measure(Lumina2Config(), "attention", precision).blocks[-1].matrix_bytes for precision in ("fp8", "bf16")]
    assert halves[1] == 2 * halves[0] == 2 * (2304 * 3840 + 2304 * 2304 + 3 * 2304 * 9216 + 1024 * 9216)


def test_4_bit_matrices_take_nine_32nds_of_the_bytes_with_their_scales() -> None:
    model = measure(Lumina2Config(), "attention", "nf4")
    full = measure(Lumina2Config(), "attention", "bf16")
    assert model.blocks[-1].matrix_bytes * 32 == full.blocks[-1].matrix_bytes * 9
    assert sum(block.matrix_bytes for block in model.blocks) / GIB == pytest.approx(1.37, abs=0.02)
    assert model.fixed_bytes == pytest.approx(full.fixed_bytes, rel=1e-3)
    assert model.unpacked_bytes == 2 * 2304 * 9216 and full.unpacked_bytes == 0


@pytest.mark.parametrize("precision", [name for name, known in PRECISIONS.items() if known.matrix_dtype])
def test_predicted_weights_are_those_of_a_loaded_model(precision: str) -> None:
    known, network = PRECISIONS[precision], tiny_transformer()
    for name, parameter in list(network.named_parameters()):
        place_weight(network, name, parameter.data.to(known.dtype), matrix_dtype=known.matrix_dtype)
    attach_lora(network, LoRASettings(targets="attention"), rank=16, alpha=16.0, seed=0)
    size = measure(TINY, "attention", precision)
    swappable = sum(x.nbytes for block in network.blocks for x in swappable_tensors(block))
    assert sum(block.matrix_bytes for block in size.blocks) == swappable
    total = sum(x.nbytes for x in (*network.parameters(), *network.buffers()))
    assert size.fixed_bytes == total - swappable


def test_largest_batch_takes_the_longest_samples_as_often_as_they_may_come() -> None:
    samples = [SampleTokens((10, 2), 100, 1), SampleTokens((20,), 400, 1), SampleTokens((30,), 50, 3)]
    batch = largest_batch(samples, 4, pads=False)
    assert (batch.caption_tokens, batch.image_tokens, batch.is_ragged) == (2 * 20 + 2 * 10, 2 * 400 + 2 * 100, True)
    assert largest_batch(samples, 1, pads=False).image_tokens == 400
    one = largest_batch([SampleTokens((7,), 16, 1)], 5, pads=False)
    assert (one.caption_tokens, one.image_tokens, one.is_ragged) == (35, 80, False)


def test_a_dropped_caption_makes_batches_ragged() -> None:
    assert not largest_batch([SampleTokens((60,), 4096, 1)] * 3, 2, pads=False).is_ragged
    batch = largest_batch([SampleTokens((60, 1), 4096, 1)] * 3, 2, pads=False)
    assert (batch.caption_tokens, batch.image_tokens, batch.is_ragged) == (120, 8192, True)


def test_largest_batch_is_filled_up_where_shapes_are() -> None:
    equal = largest_batch([SampleTokens((100,), 4096, 1)] * 3, 2, pads=True)
    assert (equal.caption_tokens, equal.image_tokens, equal.is_ragged) == (2 * 100, 2 * 4096, False)
    two = largest_batch([SampleTokens((100, 52), 4096, 1)], 2, pads=True)
    assert (two.caption_tokens, two.image_tokens, two.is_ragged) == (2 * 128, 2 * 4096, False)
    different = largest_batch([SampleTokens((100,), 4096, 1), SampleTokens((52,), 1024, 1)], 2, pads=True)
    assert (different.caption_tokens, different.image_tokens, different.is_ragged) == (256, 8192, True)
    pictures = [SampleTokens((290,), 1024, 1), *(SampleTokens((10,), 4000 + i, 1) for i in range(5))]
    single = largest_batch(pictures, 1, pads=True)
    assert (single.caption_tokens, single.image_tokens) == (128, 4096)
    batch = largest_batch([SampleTokens((100 + i,), 4000 + i, 1) for i in range(6)], 2, pads=True)
    assert (batch.caption_tokens, batch.image_tokens) == (2 * 128, 2 * 4096)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_no_batch_is_larger_than_the_largest(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    monkeypatch.setattr(padding, "has_padded_attention", lambda *_: True)
    drawn = random.Random(0)
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for number in range(200):
        is_one_resolution = number % 2 == 0
        images = (4032, 4096, 4140) if is_one_resolution else drawn.sample((256, 960, 1024, 1056, 4096, 4140), 3)
        lengths = [(drawn.randint(3, 290), drawn.choice(images)) for _ in range(drawn.choice((2, 4, 12, 40)))]
        samples = [SampleTokens((caption, 1), image, 1) for caption, image in lengths]
        most = largest_batch(samples, batch_size, pads=True)
        limiter = ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.bfloat16)
        largest = 0
        for _ in range(20):
            stream = drawn.sample(lengths, len(lengths)) * batch_size
            captions, tokens = zip(*stream[:batch_size], strict=True)
            captions = [1 if drawn.random() < 0.1 else count for count in captions]  # caption dropout
            padded = limiter.padded_lengths(captions, tokens)
            stored = sum(captions) + sum(tokens) if padded is None else batch_size * (padded.caption + padded.image)
            largest = max(largest, stored)
        ratios[is_one_resolution].append((most.caption_tokens + most.image_tokens) / largest)
    assert min(ratios[False] + ratios[True]) >= 1
    assert max(ratios[True]) < 1.1


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if not kind.devices])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_says_how_large_its_state_is(name: str, dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and not OPTIMIZERS[name].trains_bf16:
        return
    weight, settings = torch.nn.Parameter(torch.ones(512, 512, dtype=dtype)), OptimizerSettings()
    optimizer = make_optimizer(name, {"weight": weight}, learning_rate=1.0, settings=settings, seed=0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(x.nbytes for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor))
    assert state_bytes_on_device(name, weight.numel(), dtype.itemsize, settings) == pytest.approx(kept, rel=1e-3)
    on_host = OptimizerSettings(optimizer_state="host")
    assert state_bytes_on_device("adamw8bit", weight.numel(), dtype.itemsize, on_host) == 0
