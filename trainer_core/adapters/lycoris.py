"""Putting LyCORIS adapters on a transformer, new or from a file, and writing them in ComfyUI's names."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import TrainerError
from .export import read_adapter
from .file_kinds import FILE_KINDS, find_kind, split_by_module
from .lycoris_kinds import LYCORIS_KINDS
from .lycoris_layer import LycorisLinear
from .lycoris_settings import WITH_MAGNITUDES, LyCORISSettings
from .targets import LayerPlan, plan_layers

META = torch.device("meta")

FILE_KINDS_OF: dict[str, tuple[str, ...]] = {
    "lokr": ("lokr", "lokr with a whole second factor"),
    "locon": ("lora",),
    "dylora": ("lora",),
}
"""The kinds of FILE_KINDS that an algorithm starts from, where that is not its own name."""
SCALED_PARTS = {"lora_A.weight": "lora_B.weight", "hada_w1_b": "hada_w1_a", "a2.weight": "a1.weight"}
"""The part whose rows are the rank, and the part that alpha / rank is put into."""


def read_lycoris_start(settings: LyCORISSettings, plans: Sequence[LayerPlan]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer in start_from, float32 without alpha; nothing if there is no such file.

    Raises:
        TrainerError: The file is of another kind, or adapts layers that are not trained.
    """
    if not settings.start_from:
        return {}
    path = Path(settings.start_from)
    try:
        modules = split_by_module(read_adapter(path).tensors)
    except TrainerError as error:
        raise TrainerError(f"start_from: {error}") from error
    planned = {plan.name for plan in plans}
    for name, parts in modules.items():
        if name not in planned:
            raise TrainerError(
                f"start_from: {path.name} adapts {name}, which is not among the layers trained here: choose targets"
                ' that include it, such as "all_linear"'
            )
        _check_kind(path.name, name, parts, settings)
    return {name: _fold_alpha(path.name, name, parts) for name, parts in modules.items()}


def check_start_shapes(
    settings: LyCORISSettings, name: str, found: Mapping[str, Tensor], here: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare a file's parts of a layer with those that are trained.

    Args:
        settings: With start_from.
        name: Of the layer.
        found: Parts in the file.
        here: Shapes of the parts that an export would give.

    Raises:
        TrainerError: They differ.
    """
    there = {part: tuple(tensor.shape) for part, tensor in found.items() if part != "dora_scale"}
    if there == dict(here):
        return
    part = min(part for part in {*there, *here} if there.get(part) != here.get(part))
    raise TrainerError(
        f"start_from: {Path(settings.start_from).name} has {_describe(part, there)} for {name}, but"
        f" {_describe(part, here)} is trained here: set rank, factor and the other sizes as they were when the file was"
        " trained"
    )


def _describe(part: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"{part} of shape {list(shapes[part])}" if part in shapes else f"no {part}"


def _check_kind(file: str, name: str, parts: Mapping[str, Tensor], settings: LyCORISSettings) -> None:
    kind = find_kind(name, parts)
    found = next(known for known, other in FILE_KINDS.items() if other is kind)
    if found not in FILE_KINDS_OF.get(settings.algorithm, (settings.algorithm,)):
        fitting = [a for a in (*FILE_KINDS_OF, *FILE_KINDS) if found in FILE_KINDS_OF.get(a, (a,)) and a != "lora"]
        raise TrainerError(
            f"start_from: {file} holds {found} for {name}, but algorithm is {settings.algorithm}: choose algorithm"
            f" {' or '.join(dict.fromkeys(fitting))}, or another file"
        )
    if "dora_scale" in parts and not settings.weight_decompose:
        can = settings.algorithm in WITH_MAGNITUDES
        raise TrainerError(
            f"start_from: {file} has lengths of rows (DoRA) for {name}:"
            f" {'turn weight_decompose on' if can else 'choose another file'}"
        )


def _fold_alpha(file: str, name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts as this project writes them: alpha / rank within a weight."""
    folded = {part: tensor.to("cpu", torch.float32) for part, tensor in parts.items() if part != "alpha"}
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    if alpha is None:
        return folded
    if "oft_blocks" in parts:
        if alpha:
            raise TrainerError(
                f"start_from: {file} keeps a constraint of {alpha:g} for {name} in another unit than it is trained in:"
                " choose a file without one"
            )
        return folded
    ranked = {"lokr_w1_b": "lokr_w1_a", "lokr_w2_b": "lokr_w2_a", **SCALED_PARTS}
    for rank_part, scaled in ranked.items():
        if rank_part in folded:
            folded[scaled] = folded[scaled] * (alpha / len(folded[rank_part]))
            break
    return folded


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
