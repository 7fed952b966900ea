"""LoRA files of other trainers, written by their libraries where they can be had, act here as they do there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.export import read_adapter, to_diffusers
from lumina2_trainer.trainer_core.adapters.foreign_lora import convert_adapter, read_foreign_lora
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora, export_lora
from lumina2_trainer.trainer_core.adapters.merge import merge_adapter
from lumina2_trainer.trainer_core.errors import TrainerError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..lumina2.diffusers_reference import diffusers_pipeline, diffusers_transformer, run_diffusers
from ..lumina2.tiny_models import random_samples, relative_error, run_packed, tiny_transformer

SAMPLES = random_samples([(5, 6, 10), (3, 4, 8)])
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LAYERS = {
    "layers.1.attn.to_q": (96, 96),
    "layers.1.attn.to_k": (48, 96),
    "layers.1.attn.to_v": (48, 96),
    "noise_refiner.0.attn.to_out.0": (96, 96),
    "layers.0.feed_forward.linear_2": (96, 512),
    "layers.2.norm1.linear": (384, 96),
    "norm_out.linear_2": (64, 96),
}
NATIVE = {
    "layers.1.attention.qkv": ("layers.1.attn.to_q", "layers.1.attn.to_k", "layers.1.attn.to_v"),
    "noise_refiner.0.attention.out": ("noise_refiner.0.attn.to_out.0",),
    "layers.0.feed_forward.w2": ("layers.0.feed_forward.linear_2",),
    "layers.2.adaLN_modulation.1": ("layers.2.norm1.linear",),
    "final_layer.linear": ("norm_out.linear_2",),
}
RANK, ALPHA = 3, 2.0


def scatter(parameters: object) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:  # type: ignore[attr-defined]
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


def save_by_diffusers(network: nn.Module, path: Path) -> None:
    """As SimpleTuner does too: alpha is in the metadata only."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*ATTENTION, "linear_1"], alpha_pattern={"to_k": 5})
    network.add_adapter(config)
    scatter(p for name, p in network.named_parameters() if "lora_" in name)
    pipeline = diffusers_pipeline(network)
    pipeline.save_lora_weights(
        path.parent,
        transformer_lora_layers=get_peft_model_state_dict(network),
        weight_name=path.name,
        **_collate_lora_metadata({"transformer": network}),
    )


def save_by_peft(network: nn.Module, path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ATTENTION, rank_pattern={"to_v": 5}, use_rslora=True)
    wrapped = get_peft_model(network, config)
    scatter(p for name, p in wrapped.named_parameters() if "lora_" in name)
    wrapped.save_pretrained(path.parent)


def save_by_lycoris(network: nn.Module, path: Path) -> None:
    from lycoris import LycorisNetwork, create_lycoris

    LycorisNetwork.apply_preset({"target_module": ["Attention", "LuminaFeedForward"]})
    adapter = create_lycoris(network, 1.0, linear_dim=RANK, linear_alpha=ALPHA, algo="lora")
    adapter.apply_to()
    scatter(p for p in adapter.parameters() if p.requires_grad)
    adapter.save_weights(str(path), torch.float32, {})


@pytest.mark.parametrize("save", [save_by_diffusers, save_by_peft, save_by_lycoris])
def test_files_act_as_in_the_library_that_wrote_them(save: Callable[[nn.Module, Path], None], tmp_path: Path) -> None:
    network, path = diffusers_transformer(tiny_transformer()), tmp_path / "adapter_model.safetensors"  # peft's name
    save(network, path)
    with torch.no_grad():
        expected = run_diffusers(network, *SAMPLES)
    convert_adapter(path, tmp_path / "ours.safetensors", "comfyui")
    ours = tiny_transformer()
    merge_adapter(ours, read_adapter(tmp_path / "ours.safetensors").tensors, 1.0)
    bare = run_packed(tiny_transformer(), *SAMPLES)
    for actual, wanted, base in zip(run_packed(ours, *SAMPLES), expected, bare, strict=True):
        assert relative_error(wanted, base) > 0.05
        assert relative_error(actual, wanted) < 1e-4


def factors() -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by diffusers' names."""
    generator = torch.Generator().manual_seed(4)
    return {
        name: (torch.randn(RANK, inputs, generator=generator), torch.randn(outputs, RANK, generator=generator))
        for name, (outputs, inputs) in LAYERS.items()
    }


def fused() -> dict[str, tuple[Tensor, Tensor]]:
    """The same by native names, q, k and v on the block diagonal."""
    split = factors()
    return {
        native: (
            torch.cat([split[name][0] for name in names]),
            torch.block_diag(*(split[name][1] for name in names)) if len(names) > 1 else split[names[0]][1],
        )
        for native, names in NATIVE.items()
    }


def name_parts(
    layers: dict[str, tuple[Tensor, Tensor]], prefix: str, down: str, up: str, *, alpha: bool, flat: bool = False
) -> dict[str, Tensor]:
    tensors = {}
    for name, (a, b) in layers.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors.update({f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b})
        if alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA * len(a) / RANK)
    return tensors


NAMINGS: dict[str, tuple[Callable[[], dict[str, Tensor]], float]] = {
    "ComfyUI": (lambda: name_parts(fused(), "diffusion_model.", "lora_A", "lora_B", alpha=False), 1.0),
    "ComfyUI with alpha": (
        lambda: name_parts(fused(), "diffusion_model.", "lora_down", "lora_up", alpha=True),
        ALPHA / RANK,
    ),
    "sd-scripts": (
        lambda: name_parts(fused(), "lora_unet_", "lora_down", "lora_up", alpha=True, flat=True),
        ALPHA / RANK,
    ),
    "diffusers": (lambda: name_parts(factors(), "transformer.", "lora_A", "lora_B", alpha=False), 1.0),
    "SimpleTuner for ComfyUI": (
        lambda: name_parts(factors(), "transformer.", "lora_A", "lora_B", alpha=True),
        ALPHA / RANK,
    ),
    "ai-toolkit": (lambda: name_parts(factors(), "diffusion_model.", "lora_A", "lora_B", alpha=False), 1.0),
    "LyCORIS": (
        lambda: name_parts(factors(), "lycoris_", "lora_down", "lora_up", alpha=True, flat=True),
        ALPHA / RANK,
    ),
    "old diffusers": (lambda: name_parts(factors(), "transformer.", "lora.down", "lora.up", alpha=False), 1.0),
    "peft's default adapter": (
        lambda: name_parts(factors(), "base_model.model.", "lora_A.default", "lora_B.default", alpha=False),
        1.0,
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_read_exactly(naming: str, tmp_path: Path) -> None:
    tensors, scale = NAMINGS[naming]
    save_file({name: x.contiguous() for name, x in tensors().items()}, tmp_path / "x.safetensors")
    read = read_foreign_lora(tmp_path / "x.safetensors", tiny_transformer())
    assert set(read) == set(NATIVE)
    for name, (down, up) in fused().items():
        torch.testing.assert_close(read[name][1] @ read[name][0], scale * up @ down)


def test_settings_of_another_adapter_in_the_folder_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 96}')
    tensors = name_parts(fused(), "diffusion_model.", "lora_A", "lora_B", alpha=False)
    save_file(tensors, tmp_path / "x.safetensors")
    for name, (_, up) in read_foreign_lora(tmp_path / "x.safetensors", tiny_transformer()).items():
        assert torch.equal(up, tensors[f"diffusion_model.{name}.lora_B.weight"])


@pytest.mark.parametrize("naming", NAMINGS)
def test_training_starts_from_every_naming(naming: str, tmp_path: Path) -> None:
    tensors, scale = NAMINGS[naming]
    path = tmp_path / "x.safetensors"
    save_file({name: x.contiguous() for name, x in tensors().items()}, path)
    transformer = tiny_transformer()
    settings = LoRASettings(targets="all_linear", start_from=str(path))
    parameters = attach_lora(transformer, settings, rank=12, alpha=5.0, seed=1)
    exported = export_lora(transformer, parameters)
    for name, (down, up) in fused().items():
        key = f"diffusion_model.{name}.lora_"
        torch.testing.assert_close(exported[f"{key}B.weight"] @ exported[f"{key}A.weight"], scale * up @ down)
    other = "diffusion_model.layers.0.attention.qkv.lora_B.weight"
    assert not exported[other].any(), "a layer that the file does not adapt starts as the identity"


def test_dora_starts_from_a_plain_lora(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = name_parts(fused(), "diffusion_model.", "lora_A", "lora_B", alpha=False)
    save_file(tensors, path)
    merged, transformer = tiny_transformer(), tiny_transformer()
    merge_adapter(merged, tensors, 1.0)
    settings = LoRASettings(targets="all_linear", start_from=str(path), use_dora=True)
    attach_lora(transformer, settings, rank=12, alpha=5.0, seed=1)
    for ours, theirs in zip(run_packed(transformer, *SAMPLES), run_packed(merged, *SAMPLES), strict=True):
        assert relative_error(ours, theirs) < 1e-4


def test_some_of_q_k_and_v_are_read_where_the_sizes_are_known(tmp_path: Path) -> None:
    layers = {name: pair for name, pair in factors().items() if "to_q" not in name and "to_k" not in name}
    path = tmp_path / "x.safetensors"
    save_file(name_parts(layers, "transformer.", "lora_A", "lora_B", alpha=False), path)
    down, up = read_foreign_lora(path, tiny_transformer())["layers.1.attention.qkv"]
    expected = torch.zeros(192, 96)
    expected[144:] = layers["layers.1.attn.to_v"][1] @ layers["layers.1.attn.to_v"][0]
    torch.testing.assert_close(up @ down, expected)
    with pytest.raises(TrainerError, match="adapts only some of q, k and v"):
        convert_adapter(path, tmp_path / "y.safetensors", "comfyui")


def test_converted_file_loses_the_alpha_it_no_longer_needs(tmp_path: Path) -> None:
    source, target, back = (tmp_path / f"{name}.safetensors" for name in "abc")
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": ALPHA}), "x": "y"}
    save_file(name_parts(factors(), "transformer.", "lora_A", "lora_B", alpha=False), source, metadata)
    convert_adapter(source, target, "comfyui")
    convert_adapter(target, back, "diffusers")
    first, second = (read_foreign_lora(path, tiny_transformer()) for path in (source, back))
    assert read_adapter(target).metadata == {"x": "y"}
    for name, (down, up) in first.items():
        torch.testing.assert_close(second[name][1] @ second[name][0], up @ down)


def test_other_kinds_pass_through_convert_to_comfyui_only(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    tensors = {f"diffusion_model.layers.0.attention.out.lokr_w{i}": torch.ones(2, 2) for i in (1, 2)}
    save_file(tensors, source)
    convert_adapter(source, tmp_path / "b.safetensors", "comfyui")
    assert read_adapter(tmp_path / "b.safetensors").tensors.keys() == tensors.keys()
    with pytest.raises(TrainerError, match="diffusers loads only plain LoRAs, but this adapter has lokr_w1"):
        convert_adapter(source, tmp_path / "c.safetensors", "diffusers")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: {**t, "lora_te_text_model.lora_up.weight": torch.ones(1, 1)}, "also adapts the text encoder"),
        (
            lambda t: {**t, "lycoris_layers_0_attn_to_q.lokr_w1": torch.ones(1, 1)},
            "is not a plain LoRA",
        ),
        (lambda t: {**t, "transformer.single.0.attn.to_q.lora_A.weight": torch.ones(1, 1)}, "is not for Lumina2"),
        (lambda t: dict(list(t.items())[1:]), "is incomplete: .* has no counterpart"),
        (lambda t: {k: v.flatten() for k, v in t.items()}, "is damaged"),
        (lambda t: {}, "holds no weights"),
    ],
)
def test_what_is_no_lora_for_lumina2_is_refused(change: Callable, match: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(change(name_parts(factors(), "transformer.", "lora_A", "lora_B", alpha=False)), path)
    with pytest.raises(TrainerError, match=match):
        read_foreign_lora(path, tiny_transformer())


@pytest.mark.parametrize(
    ("settings", "rank", "match"),
    [
        ({"targets": "attention"}, 12, "is not among the layers trained here"),
        ({"targets": "all_linear"}, 8, r"has rank 9 for layers\.1\.attention\.qkv .* but 8 is trained here"),
    ],
)
def test_files_that_do_not_fit_the_settings_are_refused(
    settings: dict[str, str], rank: int, match: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(name_parts(fused(), "diffusion_model.", "lora_A", "lora_B", alpha=False), path)
    with pytest.raises(TrainerError, match=match):
        attach_lora(tiny_transformer(), LoRASettings(**settings, start_from=str(path)), rank=rank, alpha=1.0, seed=1)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    layers = {name: (torch.cat([a, a], 1), b) for name, (a, b) in fused().items()}
    save_file(name_parts(layers, "diffusion_model.", "lora_A", "lora_B", alpha=False), path)
    with pytest.raises(TrainerError, match="was trained on another size of Lumina2"):
        attach_lora(
            tiny_transformer(), LoRASettings(targets="all_linear", start_from=str(path)), rank=12, alpha=1.0, seed=1
        )


def test_our_own_diffusers_file_comes_back_exactly(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    parameters = attach_lora(transformer, LoRASettings(targets="all_linear"), rank=3, alpha=5.0, seed=1)
    scatter(parameters.values())
    tensors = export_lora(transformer, parameters)
    save_file({name: x.clone() for name, x in to_diffusers(tensors).items()}, tmp_path / "x.safetensors")
    for name, (down, up) in read_foreign_lora(tmp_path / "x.safetensors", transformer).items():
        assert torch.equal(down, tensors[f"diffusion_model.{name}.lora_A.weight"])
        assert torch.equal(up, tensors[f"diffusion_model.{name}.lora_B.weight"])
