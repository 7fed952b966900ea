"""Every kind of adapter: identity at the start, training, and the same effect from the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.file_kinds import FILE_KINDS, find_kind, split_by_module
from lumina2_trainer.trainer_core.adapters.kinds import ADAPTERS, AdapterSettings, without_adapter
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.adapters.lycoris_settings import LYCORIS_ALGORITHMS, LyCORISSettings
from lumina2_trainer.trainer_core.adapters.merge import merge_adapter
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.memory.rng_autocast import draws_random_numbers
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.quant.precision import MATRIX_FORMATS
from lumina2_trainer.trainer_core.training.graphs import can_be_captured
from torch import Tensor, nn

from ..lumina2.tiny_models import random_samples, relative_error, run_packed, tiny_transformer

SAMPLES = random_samples([(5, 6, 10), (3, 4, 8)])
RANK, ALPHA = 8, 12.0
TARGETS = "attention_mlp_modulation"
VARIANTS: dict[str, AdapterSettings] = {
    "lora": LoRASettings(targets=TARGETS),
    "lora, gaussian": LoRASettings(targets=TARGETS, init="gaussian"),
    "lora, pissa": LoRASettings(targets=TARGETS, init="pissa"),
    "lora, olora": LoRASettings(targets=TARGETS, init="olora"),
    "lora, rslora": LoRASettings(targets=TARGETS, use_rslora=True),
    "lora, dora": LoRASettings(targets=TARGETS, use_dora=True),
    "lora, overrides": LoRASettings(targets=TARGETS, overrides=r".*feed_forward.* rank=3 alpha=1.5"),
    **{name: LyCORISSettings(algorithm=name, targets=TARGETS) for name in LYCORIS_ALGORITHMS},
    "lokr, by rank": LyCORISSettings(targets=TARGETS, full_matrix=False, factor=4),
    "lokr, both by rank": LyCORISSettings(targets=TARGETS, full_matrix=False, decompose_both=True, factor=-1),
    "lokr, overrides": LyCORISSettings(targets=TARGETS, overrides=".*attention.* factor=8"),
    "lokr, dora": LyCORISSettings(targets=TARGETS, weight_decompose=True),
    "loha, dora": LyCORISSettings(algorithm="loha", targets=TARGETS, weight_decompose=True),
    "locon, dora": LyCORISSettings(algorithm="locon", targets=TARGETS, weight_decompose=True),
    "diag-oft, constraint": LyCORISSettings(algorithm="diag-oft", targets=TARGETS, constraint=0.002),
    "boft, rescaled": LyCORISSettings(algorithm="boft", targets=TARGETS, constraint=0.01, rescaled=True),
}


def attach(
    settings: AdapterSettings, transformer: Lumina2Transformer | None = None, rank: int = RANK
) -> tuple[Lumina2Transformer, dict[str, nn.Parameter]]:
    transformer = tiny_transformer() if transformer is None else transformer
    return transformer, ADAPTERS[settings.kind].attach(transformer, settings, rank=rank, alpha=ALPHA, seed=1)


def scatter(parameters: dict[str, nn.Parameter], share: float = 0.1) -> None:
    """Move every value away from where it started."""
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters.values():
        scale = share if parameter.ndim != 2 or parameter.shape[1] > 1 else share * parameter.detach().abs().mean()
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def export(settings: AdapterSettings, transformer: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return ADAPTERS[settings.kind].export(transformer, parameters)


def quantized(transformer: Lumina2Transformer, dtype: torch.dtype) -> Lumina2Transformer:
    for block in transformer.blocks:
        for parent in (block.attention, block.feed_forward):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, MATRIX_FORMATS[dtype](child.weight.data, None))
    return transformer


def test_every_kind_is_tested() -> None:
    assert {settings.kind for settings in VARIANTS.values()} == set(ADAPTERS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_starts_as_the_identity_and_then_trains(variant: str) -> None:
    before = run_packed(tiny_transformer(), *SAMPLES)
    transformer, parameters = attach(VARIANTS[variant])
    for ours, base in zip(run_packed(transformer.train(), *SAMPLES), before, strict=True):
        assert relative_error(ours, base) < 1e-5
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == {id(p) for p in parameters.values()}
    assert all(p.dtype == torch.float32 for p in parameters.values())
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
    losses = []
    for step in range(8):
        torch.manual_seed(step)
        loss = sum(x.square().mean() for x in run_packed(transformer, *SAMPLES))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_merged_into_the_base_has_the_same_effect(variant: str) -> None:
    settings = VARIANTS[variant]
    transformer, parameters = attach(settings)
    scatter(parameters)
    merged = tiny_transformer()
    tensors = export(settings, transformer, parameters)
    assert merge_adapter(merged, tensors, 1.0) == len(split_by_module(tensors)) == 7 * 5 + 5
    base = run_packed(tiny_transformer(), *SAMPLES)
    for ours, theirs, plain in zip(
        run_packed(transformer.eval(), *SAMPLES), run_packed(merged, *SAMPLES), base, strict=True
    ):
        assert relative_error(ours, plain) > 1e-2, "an adapter without effect would show nothing"
        assert relative_error(theirs, ours) < 1e-4


STRENGTH_POWERS = {"diag-oft": 2, "diag-oft, constraint": 2}
"""ComfyUI multiplies these by the strength twice; what it makes of boft is no power."""


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("boft")])
def test_a_strength_scales_what_an_adapter_adds_to_a_layer(variant: str) -> None:
    settings, name = VARIANTS[variant], "layers.0.attention.out"
    transformer, parameters = attach(settings)
    scatter(parameters)
    tensors, power = export(settings, transformer, parameters), STRENGTH_POWERS.get(variant, 1)
    plain = tiny_transformer().get_submodule(name)
    x = torch.randn(7, plain.in_features, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        difference = transformer.eval().get_submodule(name)(x) - plain(x)
        for strength in (0.5, 2.0):
            merged = tiny_transformer()
            merge_adapter(merged, tensors, strength)
            change = merged.get_submodule(name)(x) - plain(x)
            assert relative_error(change, strength**power * difference) < 1e-3


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_a_strength_scales_what_a_lora_adds_to_a_quantised_layer(dtype: torch.dtype) -> None:
    settings, name = VARIANTS["lora"], "layers.0.attention.out"
    transformer, parameters = attach(settings, quantized(tiny_transformer(), dtype))
    scatter(parameters)
    tensors = export(settings, transformer, parameters)
    plain = quantized(tiny_transformer(), dtype).get_submodule(name)
    x = torch.randn(7, plain.in_features, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        difference = transformer.eval().get_submodule(name)(x) - plain(x)
        for strength in (0.5, 2.0):
            merged = quantized(tiny_transformer(), dtype)
            merge_adapter(merged, tensors, strength)
            change = merged.get_submodule(name)(x) - plain(x)
            assert relative_error(change, strength * difference) < 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_strength_zero_changes_nothing(variant: str) -> None:
    settings = VARIANTS[variant]
    transformer, parameters = attach(settings)
    scatter(parameters)
    merged = tiny_transformer()
    merge_adapter(merged, export(settings, transformer, parameters), 0.0)
    before = tiny_transformer().state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in merged.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_reads_the_parameters_it_is_given(variant: str) -> None:
    settings = VARIANTS[variant]
    transformer, parameters = attach(settings)
    other = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    scatter(other)
    there = export(settings, transformer, other)
    scatter(parameters)
    here = export(settings, transformer, parameters)
    assert all(torch.equal(there[name], here[name]) for name in here)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_works_on_quantised_weights(variant: str, dtype: torch.dtype) -> None:
    settings = replace(VARIANTS[variant], targets="attention_mlp")
    base = run_packed(quantized(tiny_transformer(), dtype), *SAMPLES)
    transformer, parameters = attach(settings, quantized(tiny_transformer(), dtype))
    for ours, plain in zip(run_packed(transformer, *SAMPLES), base, strict=True):
        assert relative_error(ours, plain) < 1e-5
    sum(x.square().mean() for x in run_packed(transformer, *SAMPLES)).backward()
    scatter(parameters)
    merged = quantized(tiny_transformer(), dtype)
    merge_adapter(merged, export(settings, transformer, parameters), 1.0)
    for ours, theirs in zip(run_packed(transformer.eval(), *SAMPLES), run_packed(merged, *SAMPLES), strict=True):
        assert relative_error(theirs, ours) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputation_gives_the_same_gradients(variant: str) -> None:
    gradients = []
    for runner in (None, RecomputeBlocks(num_recomputed=7, feed_slice=32)):
        transformer, parameters = attach(VARIANTS[variant])
        scatter(parameters)
        transformer.train()
        if draws_random_numbers(transformer):
            transformer.eval()  # slices draw in another order than whole inputs
        if runner is not None:
            transformer.run_block = runner
        sum(x.square().mean() for x in run_packed(transformer, *SAMPLES)).backward()
        gradients.append({name: p.grad for name, p in parameters.items() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert relative_error(recomputed[name], gradient) < 1e-3, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_untrained_adapter_changes_nothing_in_bfloat16(variant: str) -> None:
    def run(transformer: Lumina2Transformer) -> list[Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return [x.float() for x in run_packed(transformer, *samples)]

    samples = ([x.bfloat16() for x in SAMPLES[0]], [x.bfloat16() for x in SAMPLES[1]], SAMPLES[2])
    base = run(tiny_transformer().bfloat16())
    transformer, _ = attach(VARIANTS[variant], tiny_transformer().bfloat16())
    for ours, plain in zip(run(transformer), base, strict=True):
        assert relative_error(ours, plain) < (0.01 if variant in ("lora, pissa", "lora, olora") else 1e-6)


def test_graphs_are_not_captured_where_a_pass_is_not_the_same_each_time() -> None:
    captured = {}
    for name in LYCORIS_ALGORITHMS:
        transformer, _ = attach(LyCORISSettings(algorithm=name))
        captured[name] = can_be_captured(transformer.train())
    assert [name for name, can in captured.items() if not can] == ["dylora", "diag-oft", "boft"]
    for field in ("dropout", "rank_dropout", "module_dropout"):
        transformer, _ = attach(replace(VARIANTS["loha"], **{field: 0.1}))
        assert not can_be_captured(transformer.train())


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_can_be_switched_off(variant: str) -> None:
    transformer, parameters = attach(VARIANTS[variant])
    scatter(parameters)
    base = run_packed(tiny_transformer(), *SAMPLES)
    with without_adapter(transformer):
        for ours, plain in zip(run_packed(transformer, *SAMPLES), base, strict=True):
            assert relative_error(ours, plain) < 1e-6
    assert relative_error(run_packed(transformer, *SAMPLES)[0], base[0]) > 1e-2
    assert all(p.requires_grad for p in parameters.values())


def test_same_seed_gives_the_same_start() -> None:
    for settings in VARIANTS.values():
        _, first = attach(settings)
        torch.manual_seed(123)
        _, second = attach(settings)
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kinds_attach_on_the_meta_device(variant: str) -> None:
    settings = VARIANTS[variant]
    with torch.device("meta"):
        network = Lumina2Transformer(tiny_transformer().config)
        ADAPTERS[settings.kind].check(network, settings, rank=RANK, alpha=ALPHA)
        parameters = ADAPTERS[settings.kind].attach(network, settings, rank=RANK, alpha=ALPHA, seed=1)
    _, real = attach(settings)
    assert {name: p.shape for name, p in parameters.items()} == {name: p.shape for name, p in real.items()}


def test_every_file_kind_is_written_by_some_adapter() -> None:
    seen = set()
    for settings in VARIANTS.values():
        transformer, parameters = attach(settings)
        for module, parts in split_by_module(export(settings, transformer, parameters)).items():
            seen.add(find_kind(module, parts).change)
    assert seen == {kind.change for kind in FILE_KINDS.values()}
