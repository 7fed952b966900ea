"""LoRA on the fused layout: targets, identity at the start, and what is exported."""

import math

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.export import (
    ADAPTER_DTYPES,
    AdapterFile,
    read_adapter,
    to_diffusers,
    write_adapter,
)
from lumina2_trainer.trainer_core.adapters.foreign_lora import LoRAFile, convert_adapter, to_native_factors
from lumina2_trainer.trainer_core.adapters.lora import (
    LoRASettings,
    attach_lora,
    export_lora,
)
from lumina2_trainer.trainer_core.adapters.merge import merge_adapter
from lumina2_trainer.trainer_core.adapters.targets import TARGETS, target_modules
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.files import write_safetensors_atomically

from ..lumina2.diffusers_reference import diffusers_pipeline, diffusers_transformer, run_diffusers
from ..lumina2.tiny_models import random_samples, relative_error, run_packed, tiny_transformer

SAMPLES = random_samples([(5, 6, 10), (3, 4, 8)])
PATTERN = r"layers\.\d+\.attention\.(qkv|out)"


def settings_for(targets):
    return LoRASettings(targets=targets, target_pattern=PATTERN if targets == "pattern" else "")


def trained_lora(targets="attention_mlp", rank=3, alpha=5.0):
    """A transformer with a LoRA whose values are all random, and its exported tensors."""
    transformer = tiny_transformer()
    parameters = attach_lora(transformer, settings_for(targets), rank=rank, alpha=alpha, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters.values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return transformer, export_lora(transformer, parameters)


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("attention", 7 * 2),
        ("attention_mlp", 7 * 5),
        ("attention_mlp_modulation", 7 * 5 + 5),
        ("all_linear", 7 * 5 + 5 + 6),
        ("pattern", 3 * 2),
    ],
)
def test_targets_choose_the_layers(targets, count):
    assert len(target_modules(tiny_transformer(), settings_for(targets))) == count


@pytest.mark.parametrize("targets", TARGETS)
def test_lora_starts_as_the_identity_and_then_trains(targets):
    transformer = tiny_transformer()
    before = run_packed(transformer, *SAMPLES)
    parameters = attach_lora(transformer, settings_for(targets), rank=3, alpha=3.0, seed=1)
    after = run_packed(transformer, *SAMPLES)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)
    assert all(p.requires_grad == (name in parameters) for name, p in transformer.named_parameters())
    sum(x.square().mean() for x in after).backward()
    moved = [name for name, p in parameters.items() if "lora_B" in name and p.grad.abs().sum() > 0]
    assert len(moved) == len(parameters) // 2


def test_same_seed_gives_the_same_start():
    first = attach_lora(tiny_transformer(), LoRASettings(), rank=2, alpha=2.0, seed=7)
    torch.manual_seed(123)
    second = attach_lora(tiny_transformer(), LoRASettings(), rank=2, alpha=2.0, seed=7)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("targets", TARGETS)
def test_exported_file_merged_into_the_base_has_the_same_effect(targets):
    with_adapter, tensors = trained_lora(targets)
    merged = tiny_transformer()
    assert merge_adapter(merged, tensors, 1.0) == len(tensors) // 2
    for ours, theirs in zip(run_packed(with_adapter, *SAMPLES), run_packed(merged, *SAMPLES), strict=True):
        assert relative_error(theirs, ours) < 1e-5


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 5 / 3), (True, 5 / math.sqrt(3))])
def test_scale_is_alpha_by_the_rank_or_its_root_in_the_network_and_in_the_file(use_rslora, scale):
    transformer, name = tiny_transformer(), "layers.1.attention.out"
    parameters = attach_lora(transformer, LoRASettings(use_rslora=use_rslora), rank=3, alpha=5.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    down, up = (parameters[f"{name}.lora_{part}.default.weight"].detach() for part in "AB")
    x = torch.randn(7, down.shape[1], generator=generator)
    change = transformer.get_submodule(name)(x) - tiny_transformer().get_submodule(name)(x)
    torch.testing.assert_close(change.detach(), scale * x @ down.T @ up.T, rtol=1e-4, atol=1e-4)
    file = export_lora(transformer, parameters)
    stored = file[f"diffusion_model.{name}.lora_B.weight"] @ file[f"diffusion_model.{name}.lora_A.weight"]
    torch.testing.assert_close(stored, scale * up @ down)


def test_strength_zero_changes_nothing():
    _, tensors = trained_lora()
    merged = tiny_transformer()
    merge_adapter(merged, tensors, 0.0)
    before = tiny_transformer().state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in merged.state_dict().items())


@pytest.mark.parametrize("targets", TARGETS)
def test_diffusers_file_has_the_same_effect_in_diffusers(targets, tmp_path):
    with_adapter, tensors = trained_lora(targets)
    path = tmp_path / "diffusers.safetensors"
    write_safetensors_atomically(path, to_diffusers(tensors))
    pipeline = diffusers_pipeline(diffusers_transformer(tiny_transformer()))
    pipeline.load_lora_weights(path)
    expected = run_diffusers(pipeline.transformer, *SAMPLES)
    for ours, theirs in zip(run_packed(with_adapter, *SAMPLES), expected, strict=True):
        assert relative_error(theirs, ours) < 1e-4


def test_conversion_to_diffusers_and_back_is_exact(tmp_path):
    _, tensors = trained_lora("all_linear")
    comfyui, diffusers, back = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    write_safetensors_atomically(comfyui, tensors, {"ss_steps": "5"})
    convert_adapter(comfyui, diffusers, "diffusers")
    convert_adapter(diffusers, back, "comfyui")
    result = read_adapter(back)
    assert result.metadata["ss_steps"] == "5"
    assert set(result.tensors) == set(tensors)
    assert all(torch.equal(result.tensors[name], tensors[name]) for name in tensors)
    with pytest.raises(TrainerError, match=r"c\.safetensors exists: choose another name"):
        convert_adapter(comfyui, back, "comfyui")


def test_separate_q_k_v_are_fused_exactly():
    _, tensors = trained_lora("attention", rank=2)
    split = to_diffusers(tensors)
    generator = torch.Generator().manual_seed(4)
    for name in split:
        if "lora_A" in name:
            split[name] = torch.randn(split[name].shape, generator=generator)
    fused = to_native_factors(LoRAFile(tensors=split), "split")
    stem = "layers.1.attn.to_"
    expected = torch.cat(
        [split[f"transformer.{stem}{x}.lora_B.weight"] @ split[f"transformer.{stem}{x}.lora_A.weight"] for x in "qkv"]
    )
    down, up = fused["layers.1.attention.qkv"]
    torch.testing.assert_close(up @ down, expected)


@pytest.mark.parametrize("dtype", ADAPTER_DTYPES)
def test_saved_files_never_overwrite_and_keep_metadata(dtype, tmp_path):
    _, tensors = trained_lora("attention")
    adapter = AdapterFile(tensors=tensors, metadata={"ss_network_dim": "3", "modelspec.title": "x"})
    first = write_adapter(adapter, tmp_path, "my_lora", "comfyui", dtype)
    second = write_adapter(adapter, tmp_path, "my_lora", "comfyui", dtype)
    assert [first.name, second.name] == ["my_lora_00001.safetensors", "my_lora_00002.safetensors"]
    result = read_adapter(second)
    assert result.metadata == {"ss_network_dim": "3", "modelspec.title": "my_lora_00002"}
    assert {tensor.dtype for tensor in result.tensors.values()} == {ADAPTER_DTYPES[dtype]}


@pytest.mark.parametrize("dtype", ADAPTER_DTYPES)
def test_lengths_of_dora_are_saved_exactly_in_every_precision(dtype, tmp_path):
    transformer = tiny_transformer()
    parameters = attach_lora(transformer, LoRASettings(use_dora=True), rank=2, alpha=2.0, seed=1)
    tensors = export_lora(transformer, parameters)
    saved = read_adapter(write_adapter(AdapterFile(tensors=tensors, metadata={}), tmp_path, "x", "comfyui", dtype))
    lengths = [key for key in tensors if key.endswith(".dora_scale")]
    assert lengths and all(torch.equal(saved.tensors[key], tensors[key]) for key in lengths)
    assert {t.dtype for key, t in saved.tensors.items() if key not in lengths} == {ADAPTER_DTYPES[dtype]}


@pytest.mark.parametrize("name", ["../evil", "", "a/b", ".hidden", "x" * 200])
def test_file_names_cannot_leave_the_folder(name, tmp_path):
    with pytest.raises(TrainerError, match="use letters, digits"):
        write_adapter(AdapterFile(tensors=trained_lora()[1], metadata={}), tmp_path, name, "comfyui", "fp32")


def test_adapter_of_another_size_is_refused():
    _, tensors = trained_lora("attention")
    wrong = {key: torch.cat([value, value]) if "lora_B" in key else value for key, value in tensors.items()}
    with pytest.raises(TrainerError, match="trained on another size of Lumina2"):
        merge_adapter(tiny_transformer(), wrong, 1.0)


def test_pattern_errors_name_the_pattern():
    with pytest.raises(TrainerError, match="is not a regular expression"):
        target_modules(tiny_transformer(), LoRASettings(targets="pattern", target_pattern="("))
    with pytest.raises(TrainerError, match="matches no layer: names look like"):
        target_modules(tiny_transformer(), LoRASettings(targets="pattern", target_pattern="blocks"))
    with pytest.raises(TrainerError, match="target_pattern is empty"):
        LoRASettings(targets="pattern")
