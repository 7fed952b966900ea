"""Putting LyCORIS adapters on a transformer and writing them in ComfyUI's names."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import TrainerError
from .lycoris_kinds import LYCORIS_KINDS
from .lycoris_layer import LycorisLinear
from .lycoris_settings import LyCORISSettings
from .lycoris_start import check_start_shapes, read_lycoris_start
from .targets import LayerPlan, plan_layers

META = torch.device("meta")


def check_lycoris(transformer: nn.Module, settings: LyCORISSettings, *, rank: int, alpha: float) -> None:
    """Check what depends on the network; its weights are not read.

    Raises:
        TrainerError: The library is missing, a pattern matches nothing, a layer cannot be split as asked, or start_from
            is a file of another kind or size.
    """
    plans = _check_layers(transformer, settings, rank=rank, alpha=alpha)
    linears = dict(transformer.named_modules())
    start = read_lycoris_start(settings, plans)
    for plan in plans:
        if plan.name in start:
            linear = linears[plan.name]
            assert isinstance(linear, nn.Linear), "only Linear layers are planned"
            with torch.device("meta"):
                layer = LycorisLinear(nn.Linear(linear.in_features, linear.out_features), plan, settings, META)
                check_start_shapes(settings, plan.name, start[plan.name], layer.part_shapes())


def _check_layers(transformer: nn.Module, settings: LyCORISSettings, *, rank: int, alpha: float) -> list[LayerPlan]:
    """The layers that are adapted, each of which can be split as asked."""
    if importlib.util.find_spec("lycoris") is None:
        raise TrainerError(
            f"algorithm {settings.algorithm} needs the package lycoris-lora, which is not installed: run"
            ' "pip install lycoris-lora" in the Python that runs ComfyUI'
        )
    linears = dict(transformer.named_modules())
    plans = plan_layers(transformer, settings, rank=rank, alpha=alpha, override_names=settings.override_names)
    for plan in plans:
        linear = linears[plan.name]
        assert isinstance(linear, nn.Linear), "only Linear layers are planned"
        LYCORIS_KINDS[settings.algorithm].check((linear.out_features, linear.in_features), plan, settings)
    return plans


def attach_lycoris(
    transformer: nn.Module, settings: LyCORISSettings, *, rank: int, alpha: float, seed: int
) -> dict[str, nn.Parameter]:
    """Put a LyCORIS adapter on the transformer, in place; the base is frozen.

    Args:
        transformer: In the native layout, in any precision.
        settings: Kind, targets and dropout.
        rank: Size of the adapter, where its kind has one.
        alpha: The update is scaled by alpha / rank.
        seed: Of the initial values; every kind starts as the identity, or as what start_from does.

    Returns:
        The trainable float32 parameters by name.
    """
    plans = _check_layers(transformer, settings, rank=rank, alpha=alpha)
    transformer.requires_grad_(False)
    start = read_lycoris_start(settings, plans)
    parameters = {}
    device = next(transformer.parameters()).device  # of x_embedder, which is never swapped
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for plan in plans:
            parent, _, child = plan.name.rpartition(".")
            owner = transformer.get_submodule(parent)
            linear = owner.get_submodule(child)
            assert isinstance(linear, nn.Linear), "only Linear layers are planned"
            layer = LycorisLinear(linear, plan, settings, device)
            if plan.name in start:
                check_start_shapes(settings, plan.name, start[plan.name], layer.part_shapes())
                layer.load(start[plan.name])
            owner.register_module(child, layer)
            parameters.update({f"{plan.name}.{name}": parameter for name, parameter in layer.own_parameters().items()})
    return parameters


def export_lycoris(transformer: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's file; alpha / rank is folded into the weights.

    Args:
        transformer: With the adapter.
        parameters: By the names that `attach_lycoris` gives, these or others, such as averages.

    Returns:
        `diffusion_model.<module>.<part>`, float32 on the CPU.
    """
    tensors = {}
    for name, layer in transformer.named_modules():
        if not isinstance(layer, LycorisLinear):
            continue
        values = {own: parameters[f"{name}.{own}"].detach() for own in layer.own_parameters()}
        tensors.update({f"diffusion_model.{name}.{part}": tensor for part, tensor in layer.export(values).items()})
    return tensors
