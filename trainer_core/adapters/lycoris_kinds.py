"""The kinds of LyCORIS: parameters by the lycoris-lora library, what they add to a layer's output, and their file.

The library's own forward passes are not used. Those that rebuild the weight round the update to the precision of a bf16
base, which loses small ones; DyLoRA's scales by another number than its file says; OFT's turn the bias too, which no
loader does. Below, an update is computed from the layer's input and output, so that it also works on 8-bit bases.
In a file alpha / rank is within a weight.

Shape suffixes: S tokens, O outputs, I inputs, R rank, K blocks, N size of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TrainerError
from .file_kinds import apply_butterfly, rotations
from .lycoris_settings import LyCORISSettings
from .targets import LayerPlan

BACKEND = "torch"
"""Of the library's functions: the others compile a kernel for each shape at its first use."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One use of an adapted layer."""

    x_SI: Tensor
    """Input in the dtype of the output; any number of leading dimensions."""
    product_SO: Tensor
    """x W^T, without the bias."""
    multiply: Callable[[Tensor], Tensor]
    """The same product for other inputs."""
    scale: Tensor
    """alpha / rank; a number on the device."""
    is_training: bool


@dataclass(frozen=True, kw_only=True)
class LycorisKind:
    """One kind, as functions."""

    make: Callable[[nn.Linear, LayerPlan, LyCORISSettings], nn.Module]
    """A module with the parameters of a layer, which start as the identity."""
    update: Callable[[Any, Call], Tensor]
    """What the module adds to the output, [..., O]."""
    export: Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]
    """The file's parts from parameters by name and scale."""
    load: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], float], dict[str, Tensor]] = lambda parts, own, scale: (
        dict(parts)
    )
    """Parameters by name from the file's parts, the parameters that are there, and the scale: `export` backwards."""
    check: Callable[[tuple[int, int], LayerPlan, LyCORISSettings], None] = lambda shape, plan, settings: None
    """Refuses a layer [O, I] that cannot be split as asked."""
    is_random: bool = False
    """Whether it draws random numbers in training even without dropout."""
    is_capturable: bool = True
    """Whether a CUDA graph may hold its update; inverting matrices may wait for the device."""


def _library_arguments(linear: nn.Linear, plan: LayerPlan) -> dict[str, Any]:
    # Only `bypass_mode` keeps the library from looking for weights of a class of its own in an 8-bit layer.
    return {
        "lora_name": plan.name,
        "org_module": linear,
        "lora_dim": plan.rank,
        "alpha": plan.alpha,
        "bypass_mode": True,
    }


def _make_locon(linear: nn.Linear, plan: LayerPlan, settings: LyCORISSettings) -> nn.Module:
    from lycoris.modules.locon import LoConModule

    return LoConModule(**_library_arguments(linear, plan))


def _locon_update(module: Any, call: Call) -> Tensor:
    return call.scale * _through(call.x_SI, module.lora_down.weight, module.lora_up.weight)


def _make_dylora(linear: nn.Linear, plan: LayerPlan, settings: LyCORISSettings) -> nn.Module:
    from lycoris.modules.dylora import DyLoraModule

    return DyLoraModule(**_library_arguments(linear, plan), block_size=settings.block_size)


def _check_dylora(shape: tuple[int, int], plan: LayerPlan, settings: LyCORISSettings) -> None:
    if plan.rank % settings.block_size:
        raise TrainerError(
            f"block_size is {settings.block_size}, which does not divide rank {plan.rank} of {plan.name}: choose a"
            " block_size that does"
        )


def _dylora_update(module: Any, call: Call) -> Tensor:
    """In training a random number of blocks, of which the last one learns (Valipour et al., arXiv:2210.07558)."""
    count = len(module.up_list)
    last = int(torch.randint(count, ())) if call.is_training else count - 1
    downs, ups = list(module.down_list)[: last + 1], list(module.up_list)[: last + 1]
    if call.is_training:
        downs, ups = [*(x.detach() for x in downs[:-1]), downs[-1]], [*(x.detach() for x in ups[:-1]), ups[-1]]
    return call.scale * _through(call.x_SI, torch.cat(downs), torch.cat(ups, dim=1))


def _make_loha(linear: nn.Linear, plan: LayerPlan, settings: LyCORISSettings) -> nn.Module:
    from lycoris.modules.loha import LohaModule

    return LohaModule(**_library_arguments(linear, plan))


def _loha_update(module: Any, call: Call) -> Tensor:
    from lycoris.functional.loha import bypass_forward_diff

    names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a")
    factors = [getattr(module, name).to(call.x_SI.dtype) for name in names]
    return bypass_forward_diff(call.x_SI, None, *factors, None, None, gamma=call.scale, backend=BACKEND)


def _make_lokr(linear: nn.Linear, plan: LayerPlan, settings: LyCORISSettings) -> nn.Module:
    from lycoris.modules.lokr import LokrModule

    return LokrModule(
        **_library_arguments(linear, plan),
        factor=int(plan.numbers.get("factor", settings.factor)),
        full_matrix=settings.full_matrix,
        decompose_both=settings.decompose_both,
    )


def _lokr_update(module: Any, call: Call) -> Tensor:
    from lycoris.functional.lokr import kron_bypass

    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    factors = [getattr(module, name, None) for name in names]
    factors = [None if factor is None else factor.to(call.x_SI.dtype) for factor in factors]
    return call.scale * kron_bypass(call.x_SI, *factors, scale=1.0, backend=BACKEND)


def _make_glora(linear: nn.Linear, plan: LayerPlan, settings: LyCORISSettings) -> nn.Module:
    from lycoris.modules.glora import GLoRAModule

    return GLoRAModule(**_library_arguments(linear, plan))


def _glora_update(module: Any, call: Call) -> Tensor:
    """x (W a1 a2 + b1 b2)^T; W meets the few rows of a1, not those of x."""
    dtype = call.x_SI.dtype
    turned_RO = call.multiply(module.a1.weight.t().to(dtype))
    first_SO = F.linear(call.x_SI, module.a2.weight.to(dtype)) @ turned_RO.to(dtype)
    return call.scale * (first_SO + _through(call.x_SI, module.b2.weight, module.b1.weight))


def _make_oft(linear: nn.Linear, plan: LayerPlan, settings: LyCORISSettings) -> nn.Module:
    from lycoris.modules.diag_oft import DiagOFTModule

    return DiagOFTModule(**_library_arguments(linear, plan), constraint=settings.constraint)


def _oft_update(module: Any, call: Call) -> Tensor:
    """(R - I) W x, block by block."""
    turn_KNN = _rotation_minus_identity(module.oft_blocks, module.constraint).to(call.product_SO.dtype)
    out_SKN = call.product_SO.unflatten(-1, turn_KNN.shape[:2])
    return torch.einsum("knm,...kn->...km", turn_KNN, out_SKN).flatten(-2)


def _make_boft(linear: nn.Linear, plan: LayerPlan, settings: LyCORISSettings) -> nn.Module:
    from lycoris.modules.boft import ButterflyOFTModule

    arguments = _library_arguments(linear, plan)
    return ButterflyOFTModule(**arguments, constraint=settings.constraint, rescaled=settings.rescaled)


def _check_boft(shape: tuple[int, int], plan: LayerPlan, settings: LyCORISSettings) -> None:
    num_outputs = shape[0]
    smallest = 2 * (num_outputs // (num_outputs & -num_outputs))  # blocks are even, their number is a power of two
    if num_outputs % smallest or plan.rank < smallest:
        raise TrainerError(
            f"rank is {plan.rank}: boft cannot split the {num_outputs} outputs of {plan.name} into blocks that small;"
            f" raise rank to {smallest} or more"
        )


def _boft_update(module: Any, call: Call) -> Tensor:
    """Each stage adds what it turns, as R itself would be rounded to the precision of the output."""
    turned_SO = call.product_SO
    turns = _rotation_minus_identity(module.oft_blocks, module.constraint).to(turned_SO.dtype)
    for stage, turn_KNN in enumerate(turns):
        turned_SO = turned_SO + apply_butterfly(turned_SO, turn_KNN, stage)
    if module.rescaled:
        turned_SO = turned_SO * module.rescale.flatten().to(turned_SO.dtype)
    return turned_SO - call.product_SO


def _rotation_minus_identity(blocks: Tensor, constraint: float) -> Tensor:
    """[..., N, N] float32."""
    with torch.autocast(blocks.device.type, enabled=False):
        turned = rotations(_constrained(blocks, constraint))
        return turned - torch.eye(blocks.shape[-1], device=blocks.device)


def _constrained(blocks: Tensor, constraint: float) -> Tensor:
    """Made shorter where the length of all B - B^T together exceeds the constraint, which 0 turns off."""
    if not constraint:
        return blocks
    length = torch.linalg.norm((blocks - blocks.transpose(-1, -2)).flatten()) + 1e-8
    return blocks * (constraint / length).clamp(max=1.0)


def _export_rotations(values: Mapping[str, Tensor], constraint: float) -> dict[str, Tensor]:
    """With the constraint applied: ComfyUI would read it from `alpha`, but in another unit than the library's."""
    return {**values, "oft_blocks": _constrained(values["oft_blocks"], constraint)}


def _export_boft(values: Mapping[str, Tensor], constraint: float) -> dict[str, Tensor]:
    # ComfyUI's loader of boft fails where there is no alpha; 0 means no constraint.
    return {**_export_rotations(values, constraint), "alpha": torch.zeros(())}


class WeightDifference(nn.Module):
    """A difference to every entry of the weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.diff = nn.Parameter(torch.zeros(linear.out_features, linear.in_features))


def _full_update(module: WeightDifference, call: Call) -> Tensor:
    return F.linear(call.x_SI, module.diff.to(call.x_SI.dtype))


def _through(x_SI: Tensor, down_RI: Tensor, up_OR: Tensor) -> Tensor:
    return F.linear(F.linear(x_SI, down_RI.to(x_SI.dtype)), up_OR.to(x_SI.dtype))


def export_locon(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    return {"lora_A.weight": values["lora_down.weight"], "lora_B.weight": scale * values["lora_up.weight"]}


def load_locon(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    return {"lora_down.weight": parts["lora_A.weight"], "lora_up.weight": parts["lora_B.weight"] / scale}


def export_dylora(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    count = len(values) // 2
    down_RI = torch.cat([values[f"down_list.{i}"] for i in range(count)])
    up_OR = torch.cat([values[f"up_list.{i}"] for i in range(count)], dim=1)
    return {"lora_A.weight": down_RI, "lora_B.weight": scale * up_OR}


def load_dylora(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    sizes = [len(own[f"down_list.{i}"]) for i in range(len(own) // 2)]
    downs, ups = parts["lora_A.weight"].split(sizes), (parts["lora_B.weight"] / scale).split(sizes, dim=1)
    named = {f"down_list.{i}": down for i, down in enumerate(downs)}
    return named | {f"up_list.{i}": up for i, up in enumerate(ups)}


def export_loha(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    return {**values, "hada_w1_a": scale * values["hada_w1_a"]}


def load_loha(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    return {**parts, "hada_w1_a": parts["hada_w1_a"] / scale}


def export_lokr(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    scaled = "lokr_w1" if "lokr_w1" in values else "lokr_w1_a"
    return {**values, scaled: scale * values[scaled]}


def load_lokr(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    scaled = "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"
    return {**parts, scaled: parts[scaled] / scale}


def export_glora(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    return {**values, **{name: scale * values[name] for name in ("a1.weight", "b1.weight")}}


def load_glora(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    return {**parts, **{name: parts[name] / scale for name in ("a1.weight", "b1.weight")}}


LYCORIS_KINDS: dict[str, LycorisKind] = {
    "lokr": LycorisKind(make=_make_lokr, update=_lokr_update, export=export_lokr, load=load_lokr),
    "loha": LycorisKind(make=_make_loha, update=_loha_update, export=export_loha, load=load_loha),
    "locon": LycorisKind(make=_make_locon, update=_locon_update, export=export_locon, load=load_locon),
    "dylora": LycorisKind(
        make=_make_dylora,
        update=_dylora_update,
        export=export_dylora,
        load=load_dylora,
        check=_check_dylora,
        is_random=True,
    ),
    "glora": LycorisKind(make=_make_glora, update=_glora_update, export=export_glora, load=load_glora),
    "diag-oft": LycorisKind(make=_make_oft, update=_oft_update, export=_export_rotations, is_capturable=False),
    "boft": LycorisKind(
        make=_make_boft, update=_boft_update, export=_export_boft, check=_check_boft, is_capturable=False
    ),
    "full": LycorisKind(
        make=lambda linear, plan, settings: WeightDifference(linear),
        update=_full_update,
        export=lambda values, scale: dict(values),
    ),
}
"""By the names of LYCORIS_ALGORITHMS."""
