"""Every precision of the base trains, resumes, draws and exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.export import read_adapter
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.adapters.merge import merge_adapter
from lumina2_trainer.trainer_core.adapters.targets import TARGETS
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.lumina2.models.base_files import load_base_transformer
from lumina2_trainer.trainer_core.lumina2.quant.precision import PRECISIONS
from lumina2_trainer.trainer_core.run.job import TrainFullSettings, TrainJob, fingerprint_job
from lumina2_trainer.trainer_core.stages import validate
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings
from torch import Tensor, nn

from ..lumina2.tiny_models import CPU, random_samples, relative_error, run_packed
from ..training_setup import TRAIN, Setup

LOSS_ERROR = {"bf16": 0.02, "fp32": 0.0, "fp8": 0.1, "int8": 0.05, "nf4": 0.2}
"""Relative error of the losses of a short run against float32."""
QUANTIZED = sorted(name for name, precision in PRECISIONS.items() if precision.matrix_dtype)
SAMPLES = random_samples([(5, 6, 10), (3, 4, 8)])


def with_precision(setup: Setup, precision: str) -> Setup:
    return replace(setup, model=replace(setup.model, precision=precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_follows_float32(fresh: Setup, precision: str) -> None:
    exact = with_precision(fresh, "fp32").trained()
    result = with_precision(fresh, precision).train(replace(TRAIN, run_name="other"))
    assert result.losses == pytest.approx(exact.losses, rel=LOSS_ERROR[precision])
    assert (result.losses == exact.losses) == (precision == "fp32")
    assert all(t.dtype == torch.float32 for t in read_adapter(Path(result.adapter.path)).tensors.values())


@pytest.mark.train
@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("targets", [t for t in TARGETS if t != "pattern"])
def test_every_target_trains_and_recomputes_on_quantised_weights(fresh: Setup, precision: str, targets: str) -> None:
    setup, settings = with_precision(fresh, precision), LoRASettings(targets=targets, dropout=0.1)
    plain = setup.train(replace(TRAIN, steps=2), adapter_settings=settings)
    again = setup.moved_to(setup.context.output_dir / "again")
    recomputed = again.train(replace(TRAIN, steps=2, gradient_checkpointing=True), adapter_settings=settings)
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-3)
    tensors = read_adapter(Path(plain.adapter.path)).tensors
    assert all(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)


@pytest.mark.train
@pytest.mark.parametrize("precision", QUANTIZED)
def test_resuming_is_exact(fresh: Setup, tmp_path: Path, precision: str) -> None:
    setup = with_precision(fresh, precision)
    whole = setup.trained()
    other, asked = setup.moved_to(tmp_path / "stopped"), iter([False, False, True])
    with pytest.raises(StopTraining):
        other.with_stop(lambda: next(asked)).train()
    resumed = other.train()
    assert resumed.losses == whole.losses
    first, second = (read_adapter(Path(r.adapter.path)).tensors for r in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_precision_is_another_job(fresh: Setup) -> None:
    def identity(precision: str) -> str:
        setup = with_precision(fresh, precision)
        return fingerprint_job(
            TrainJob(model=setup.model, latents=setup.latents, embeds=setup.embeds, train=TRAIN, adapter=LoRASettings())
        )

    assert len({identity(precision) for precision in PRECISIONS}) == len(PRECISIONS)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_the_model_itself_is_not_trained_in_few_bits(fresh: Setup, precision: str) -> None:
    setup = with_precision(fresh, precision)
    with pytest.raises(TrainerError, match=f"precision is {precision}, which stores weights that cannot be trained"):
        TrainJob(
            model=setup.model,
            latents=setup.latents,
            embeds=setup.embeds,
            train=TrainFullSettings(run_name="full"),
            optimizer=OptimizerSettings(),
        )


@pytest.mark.parametrize("precision", QUANTIZED)
def test_only_the_matrices_of_blocks_have_few_bits(fresh: Setup, precision: str) -> None:
    transformer = load_base_transformer(with_precision(fresh, precision).model, CPU)
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        dtypes = {x.dtype for x in module.parameters() if x.ndim == 2}
        is_in_block = name.split(".")[0] in ("layers", "noise_refiner", "context_refiner")
        assert dtypes == {PRECISIONS[precision].matrix_dtype if is_in_block else torch.bfloat16}, name


@pytest.mark.parametrize("precision", QUANTIZED)
def test_merged_adapter_has_the_effect_it_has_beside_float32(fresh: Setup, precision: str) -> None:
    """Small enough that adding it to quantised weights would round it away."""
    trained = fresh.trained(replace(TRAIN, learning_rate=1e-3), adapter_settings=LoRASettings(targets="all_linear"))
    tensors = read_adapter(Path(trained.adapter.path)).tensors

    def effect(name: str) -> Tensor:
        transformer = load_base_transformer(with_precision(fresh, name).model, CPU).float()
        before = torch.cat([x.flatten() for x in run_packed(transformer, *SAMPLES)])
        assert merge_adapter(transformer, tensors, 1.0) == len(tensors) // 2
        return torch.cat([x.flatten() for x in run_packed(transformer, *SAMPLES)]) - before

    assert relative_error(effect(precision), effect("fp32")) < 0.3


@pytest.mark.parametrize("precision", QUANTIZED)
def test_prompts_are_drawn_with_and_without_the_adapter(fresh: Setup, precision: str) -> None:
    setup = with_precision(fresh, precision)
    trained = setup.trained()
    settings = ValidateSettings(prompts="a red square", width=64, height=64, num_inference_steps=2)
    pictures = [
        validate.validate(settings, model=setup.model, adapter=adapter, context=setup.context).images[0].read_bytes()
        for adapter in (None, trained.adapter)
    ]
    assert pictures[0] != pictures[1]


def test_apple_gpus_are_refused_fp8_before_any_weight_is_read(fresh: Setup) -> None:
    with pytest.raises(
        TrainerError, match="precision is fp8, which Apple's GPUs do not have: choose int8, nf4 or bf16"
    ):
        load_base_transformer(with_precision(fresh, "fp8").model, torch.device("mps"))
