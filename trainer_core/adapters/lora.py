"""LoRA by peft on the fused native layout: its settings, its initial values, its file.

Shape suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import TrainerError
from ..settings import check_settings, setting
from .file_kinds import host_norm
from .foreign_lora import read_foreign_lora
from .targets import TARGETS, LayerPlan, check_targets, plan_layers

if TYPE_CHECKING:
    from .fused_lora import FusedLoRALinear


OVERRIDE_NAMES = ("rank", "alpha")
NAME = "default"
"""Of the adapter, within peft."""

FACTORED_INITS = {"pissa": "pissa_niter_16", "olora": "olora"}
"""peft's names of the initial values that are factors of the weight. 16 iterations find the main directions to about
1e-3, in a hundredth of the time of a whole decomposition."""
LORA_INITS = ("default", "gaussian", *FACTORED_INITS)


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """Widgets of LoRA Settings; rank and alpha are on Train LoRA."""

    targets: str = setting("attention_mlp", choices=TARGETS)
    """Which layers are adapted. More layers learn more and make a larger file."""
    target_pattern: str = setting("")
    """Regular expression over whole module names when targets is "pattern", such as
    `layers\\.\\d+\\.attention\\.(qkv|out)`."""
    dropout: float = setting(0.0, minimum=0.0, maximum=0.99, step=0.05)
    """Share of the adapter's inputs set to zero in training; a little can slow overfitting."""
    init: str = setting("default", choices=LORA_INITS, is_optional=True)
    """Initial values. "default" and "gaussian" are random; "pissa" starts from the main directions of each weight,
    which learns faster, and "olora" from an orthogonal basis of it. With these two the file is twice the rank."""
    use_rslora: bool = setting(False, is_optional=True, is_advanced=True)
    """Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA), so that high ranks learn as fast as low ones."""
    use_dora: bool = setting(False, is_optional=True)
    """Learn the length of each row of the weight apart from its direction (DoRA): closer to full training, slower."""
    overrides: str = setting("", multiline=True, is_optional=True, is_advanced=True)
    """Another rank or alpha for some layers: a line for each group, a regular expression over whole module names and
    then the numbers, such as `.*feed_forward.* rank=8 alpha=4`. The first line that matches counts."""
    start_from: str = setting("", is_optional=True)
    """A LoRA file in models/loras to go on from, whatever trainer wrote it; empty starts anew. Its rank may be lower
    than the one trained here, not higher."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_targets(self, OVERRIDE_NAMES)
        if self.use_dora and self.init in FACTORED_INITS:
            raise TrainerError(f"init is {self.init}, which cannot be combined with use_dora: switch one of them off")
        if self.start_from and self.init != "default":
            raise TrainerError(f"init is {self.init} but start_from brings its own values: set init to default")

    @property
    def kind(self) -> str:
        """Key of ADAPTERS."""
        return "lora"

    @property
    def is_plain(self) -> bool:
        """Whether a layer can be computed as one operation with its frozen weight."""
        return not (self.dropout or self.use_dora)


@torch.no_grad()
def factor_weight(weight_OI: Tensor, init: str, *, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The factors that peft starts an adapter from.

    Args:
        weight_OI: float32; left as it is.
        init: Key of FACTORED_INITS.
        rank: Of the adapter.
        scaling: Of the adapter's output.

    Returns:
        A [R, I] and B [O, R], float32.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_OI.clone(), requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=scaling * rank, target_modules=["0"], init_lora_weights=FACTORED_INITS[init])
    layer = inject_adapter_in_model(config, nn.Sequential(linear))[0]
    return layer.lora_A["default"].weight.detach().float(), layer.lora_B["default"].weight.detach().float()


def read_start(path: str, transformer: nn.Module, plans: Sequence[LayerPlan]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B [.., R'] of each layer in a file, scaled so that the update is B A.

    Raises:
        TrainerError: The file is no LoRA for these layers, or its rank is higher than planned.
    """
    ranks = {plan.name: plan.rank for plan in plans}
    start = {}
    for name, (down_RI, up_OR) in read_foreign_lora(Path(path), transformer).items():
        if name not in ranks:
            raise TrainerError(
                f"start_from: {Path(path).name} adapts {name}, which is not among the layers trained here: choose"
                ' targets that include it, such as "all_linear"'
            )
        linear = transformer.get_submodule(name)
        assert isinstance(linear, nn.Linear), "only Linear layers are planned"
        shape = (linear.out_features, linear.in_features)
        if (len(up_OR), down_RI.shape[1]) != shape:
            raise TrainerError(
                f"start_from: {Path(path).name} was trained on another size of Lumina2: {name} is {shape} here and"
                f" {(len(up_OR), down_RI.shape[1])} there"
            )
        if len(down_RI) > ranks[name]:
            raise TrainerError(
                f"start_from: {Path(path).name} has rank {len(down_RI)} for {name} (q, k and v count together), but"
                f" {ranks[name]} is trained here: raise rank, or set it for this layer in overrides"
            )
        start[name] = (down_RI, up_OR)
    return start


def check_lora(transformer: nn.Module, settings: LoRASettings, *, rank: int, alpha: float) -> None:
    """Check what depends on the network; its weights are not read.

    Raises:
        TrainerError: A pattern matches nothing, a rank is too high for the initial values asked for, or start_from is
            no LoRA for these layers.
    """
    plans = _plan(transformer, settings, rank, alpha)
    if settings.init in FACTORED_INITS:
        for plan in plans:
            linear = transformer.get_submodule(plan.name)
            assert isinstance(linear, nn.Linear), "only Linear layers are planned"
            if plan.rank > min(linear.out_features, linear.in_features):
                raise TrainerError(
                    f"rank is {plan.rank} but {plan.name} is {linear.out_features} x {linear.in_features}: init"
                    f" {settings.init} needs a rank that is not higher; lower it for this layer in overrides"
                )
    if settings.start_from:
        read_start(settings.start_from, transformer, plans)


def attach_lora(
    transformer: nn.Module, settings: LoRASettings, *, rank: int, alpha: float, seed: int
) -> dict[str, nn.Parameter]:
    """Put a LoRA on the transformer, in place; the base is frozen.

    Args:
        transformer: In the native layout; on the meta device nothing is computed.
        settings: Targets, initial values and dropout.
        rank: Size of the adapter, where overrides do not say another.
        alpha: Output is scaled by alpha / rank.
        seed: Of the initial values; the adapter starts as the identity, or as what start_from does.

    Returns:
        The trainable float32 parameters by name, A and B of each target in turn.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from .fused_lora import FusedLoRALinear

    transformer.requires_grad_(False)
    plans = _plan(transformer, settings, rank, alpha)
    start = read_start(settings.start_from, transformer, plans) if settings.start_from else {}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=[plan.name for plan in plans],
        rank_pattern={re.escape(plan.name): plan.rank for plan in plans if plan.rank != rank},
        alpha_pattern={re.escape(plan.name): plan.alpha for plan in plans if plan.alpha != alpha},
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )
    config._register_custom_module({nn.Linear: FusedLoRALinear})  # "custom models" in peft's developer guide
    device = next(transformer.parameters()).device  # of x_embedder, which is never swapped
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, transformer)
        parameters = _move_parameters(transformer, device)
        for name, layer in _layers(transformer):
            if device.type != "meta":
                _set_values(layer, settings, start.get(name), device)
    return parameters


def _plan(transformer: nn.Module, settings: LoRASettings, rank: int, alpha: float) -> list[LayerPlan]:
    return plan_layers(transformer, settings, rank=rank, alpha=alpha, override_names=OVERRIDE_NAMES)


def _move_parameters(transformer: nn.Module, device: torch.device) -> dict[str, nn.Parameter]:
    parameters = {}
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device, torch.float32)  # peft puts it where the frozen weight is
            parameters[name] = parameter
    return parameters


@torch.no_grad()
def _set_values(
    layer: FusedLoRALinear, settings: LoRASettings, start: tuple[Tensor, Tensor] | None, device: torch.device
) -> None:
    """Initial values that peft does not give, on the device."""
    down_RI, up_OR = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    if start is not None:
        rank = len(start[0])
        down_RI[:rank] = start[0].to(device)
        up_OR[:, :rank] = start[1].to(device) / layer.scaling[NAME]
    if settings.init in FACTORED_INITS:
        weight_OI = layer.base_layer.weight.to(device, torch.float32)
        down, up = factor_weight(weight_OI, settings.init, rank=len(down_RI), scaling=layer.scaling[NAME])
        down_RI.copy_(down)
        up_OR.copy_(up)
        layer.subtract_start(down.clone(), layer.scaling[NAME] * up)
    if settings.use_dora:  # peft's are in the precision of the weight
        layer.lora_magnitude_vector[NAME].weight.copy_(
            _changed_lengths(layer, layer.scaling[NAME] * up_OR, down_RI).flatten()
        )


def _layers(transformer: nn.Module) -> Iterator[tuple[str, FusedLoRALinear]]:
    from .fused_lora import FusedLoRALinear

    return ((name, module) for name, module in transformer.named_modules() if isinstance(module, FusedLoRALinear))


@torch.no_grad()
def export_lora(transformer: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's file: fused qkv, `diffusion_model.` before native names, alpha / rank folded into B.

    What an adapter with init pissa or olora started from is subtracted, so the file fits the base as it is.

    Args:
        transformer: With the adapter.
        parameters: By the names that `attach_lora` gives, these or others, such as averages.

    Returns:
        `diffusion_model.<module>.lora_A.weight` [rank, in], `.lora_B.weight` [out, rank] and with DoRA `.dora_scale`
        [out, 1], float32 on the CPU.
    """
    tensors = {}
    for name, layer in _layers(transformer):
        down_RI = parameters[f"{name}.lora_A.{NAME}.weight"].detach().float()
        up_OR = parameters[f"{name}.lora_B.{NAME}.weight"].detach().float() * layer.scaling[NAME]
        if layer.start_A_RI is not None and layer.start_B_OR is not None:
            down_RI = torch.cat([down_RI, layer.start_A_RI.to(down_RI.device)])
            up_OR = torch.cat([up_OR, -layer.start_B_OR.to(up_OR.device)], dim=1)
        parts = {"lora_A.weight": down_RI, "lora_B.weight": up_OR}
        magnitude_O = parameters.get(f"{name}.lora_magnitude_vector.{NAME}.weight")
        if magnitude_O is not None:
            parts["dora_scale"] = _host_magnitudes(layer, magnitude_O.detach().float(), up_OR, down_RI)
        tensors.update({f"diffusion_model.{name}.{part}": tensor.cpu() for part, tensor in parts.items()})
    return tensors


def _host_magnitudes(layer: FusedLoRALinear, magnitude_O: Tensor, up_OR: Tensor, down_RI: Tensor) -> Tensor:
    """ComfyUI divides by the row lengths of W where DoRA has those of W + BA; this makes up for it, [O, 1]."""
    lengths_O1 = host_norm(layer.base_layer.weight.to(up_OR.device, torch.float32))
    return magnitude_O[:, None] * lengths_O1 / _changed_lengths(layer, up_OR, down_RI)


def _changed_lengths(layer: FusedLoRALinear, up_OR: Tensor, down_RI: Tensor) -> Tensor:
    weight_OI = layer.base_layer.weight.to(up_OR.device, torch.float32)
    return torch.addmm(weight_OI, up_OR, down_RI).norm(dim=1, keepdim=True)


def restore_lora_start(transformer: nn.Module, exported: Mapping[str, Tensor]) -> None:
    """Take over what an adapter started from, so that a run resumes exactly on another machine too.

    Args:
        transformer: With the adapter.
        exported: What `export_lora` gave in the earlier part of the run.
    """
    for name, layer in _layers(transformer):
        if layer.start_A_RI is not None:
            rank, device = len(layer.start_A_RI), layer.start_A_RI.device
            down_RI = exported[f"diffusion_model.{name}.lora_A.weight"][rank:]
            up_OR = exported[f"diffusion_model.{name}.lora_B.weight"][:, rank:]
            layer.subtract_start(down_RI.to(device), -up_OR.to(device))
