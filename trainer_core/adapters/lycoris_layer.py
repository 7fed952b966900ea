"""A frozen Linear layer with a LyCORIS adapter.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lumina2.quant.frozen_linear import apply_linear
from .file_kinds import change_of_weight, host_norm
from .lycoris_kinds import LYCORIS_KINDS, Call
from .lycoris_settings import LyCORISSettings
from .targets import LayerPlan

CONSTRAINED = ("diag-oft", "boft")


class LycorisLinear(nn.Module):
    """Computes W x + b + update(x).

    With magnitudes m (DoRA, Liu et al., arXiv:2402.09353): m / |W + dW| (W + dW) x + b, where the row lengths |W + dW|
    are taken as constants in the backward pass.
    """

    scale: Tensor

    def __init__(self, base_layer: nn.Linear, plan: LayerPlan, settings: LyCORISSettings, device: torch.device) -> None:
        """
        Args:
            base_layer: Frozen; of any precision.
            plan: Rank and alpha of this layer.
            settings: What kind of adapter.
            device: Of the adapter; the base may be in host memory now.
        """
        super().__init__()
        self.base_layer = base_layer
        self.plan = plan
        self.kind = settings.algorithm
        self.is_enabled = True
        self.dropout, self.rank_dropout = settings.dropout, settings.rank_dropout
        self.module_dropout = settings.module_dropout
        self.draws_random_numbers = LYCORIS_KINDS[self.kind].is_random
        self.is_capturable = LYCORIS_KINDS[self.kind].is_capturable
        self.adapter = LYCORIS_KINDS[self.kind].make(base_layer, plan, settings).to(device)
        is_whole = hasattr(self.adapter, "lokr_w1") and hasattr(self.adapter, "lokr_w2")  # neither has a rank
        self.scaling = 1.0 if is_whole or self.kind in (*CONSTRAINED, "full") else plan.alpha / plan.rank
        self.register_buffer("scale", torch.tensor(self.scaling, device=device), persistent=False)
        self.magnitude_O1: nn.Parameter | None = None
        if settings.weight_decompose:
            self.magnitude_O1 = nn.Parameter(_row_lengths(base_layer.weight.detach()).to(device))

    @property
    def weight(self) -> Tensor:
        """Of the base, as a Linear has it."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """Of the base, as a Linear has it."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out = apply_linear(self.base_layer, x)
        if not self.is_enabled or self._is_left_out():
            return out
        bias_O = None if self.bias is None else self.bias.to(out.dtype)
        product = out if bias_O is None else out - bias_O
        call = Call(
            x_SI=x.to(out.dtype),
            product_SO=product,
            multiply=self._multiply,
            scale=self.scale.to(out.dtype),
            is_training=self.training,
        )
        update = self._dropped(LYCORIS_KINDS[self.kind].update(self.adapter, call))
        if self.magnitude_O1 is None:
            return out + update
        share_O = (self.magnitude_O1 / self._changed_lengths(self.own_parameters())).flatten()
        # As differences to the base's output, which are then not rounded as that is.
        return out + product * (share_O - 1).to(out.dtype) + update * share_O.to(out.dtype)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by the names that `export` takes."""
        own = {name: p for name, p in self.adapter.named_parameters() if p.requires_grad}
        return own if self.magnitude_O1 is None else {**own, "magnitude_O1": self.magnitude_O1}

    @torch.no_grad()
    def export(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of ComfyUI's file, float32 and contiguous, on the CPU.

        Args:
            values: For `own_parameters`, these or others.
        """
        parts = self._parts(values)
        if self.magnitude_O1 is not None:
            # ComfyUI divides by the row lengths of W where DoRA has those of W + dW; the file makes up for it.
            lengths_O1 = host_norm(self.base_layer.weight.float().to(self.scale.device))
            magnitude_O1 = values["magnitude_O1"].to(self.scale.device).float()
            parts["dora_scale"] = magnitude_O1 * lengths_O1 / self._changed_lengths(values)
        return {name: part.detach().float().cpu().contiguous().clone() for name, part in parts.items()}

    @torch.no_grad()
    def part_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parts that `export` gives, without those of one value a row; works on the meta device."""
        return {name: tuple(part.shape) for name, part in self._parts(self.own_parameters()).items() if part.ndim}

    @torch.no_grad()
    def load(self, parts: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave, here or in another run.

        Args:
            parts: Of this layer, of the shapes that `export` gives, without alpha.
        """
        own = self.own_parameters()
        device = self.scale.device
        kept = {name: part.to(device) for name, part in parts.items() if name != "dora_scale"}
        for name, value in LYCORIS_KINDS[self.kind].load(kept, own, self.scaling).items():
            own[name].copy_(value)
        if self.magnitude_O1 is None:
            return
        lengths_O1 = self._changed_lengths(own)
        if "dora_scale" in parts:  # see export
            base_lengths_O1 = host_norm(self.base_layer.weight.float().to(device))
            lengths_O1 = parts["dora_scale"].to(device) * lengths_O1 / base_lengths_O1
        self.magnitude_O1.copy_(lengths_O1)

    def _parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {name: value.float() for name, value in values.items() if name != "magnitude_O1"}
        number = cast(float, self.adapter.constraint) if self.kind in CONSTRAINED else self.scaling
        return LYCORIS_KINDS[self.kind].export(own, number)

    @torch.no_grad()
    def _changed_lengths(self, values: Mapping[str, Tensor]) -> Tensor:
        """|W + dW| of each row, [O, 1]."""
        with torch.autocast(self.scale.device.type, enabled=False):
            weight_OI = self.base_layer.weight.float().to(self.scale.device)
            changed_OI = weight_OI + change_of_weight(self.plan.name, self._parts(values), weight_OI, 1.0)
            return _row_lengths(changed_OI)

    def _multiply(self, x: Tensor) -> Tensor:
        out = apply_linear(self.base_layer, x)
        return out if self.bias is None else out - self.bias.to(out.dtype)

    def _is_left_out(self) -> bool:
        return self.training and self.module_dropout > 0 and float(torch.rand(())) < self.module_dropout

    def _dropped(self, update: Tensor) -> Tensor:
        if not self.training:
            return update
        if self.rank_dropout > 0:
            update = update * (torch.rand(update.shape[-1], device=update.device) >= self.rank_dropout).to(update.dtype)
        return F.dropout(update, self.dropout)


def _row_lengths(weight_OI: Tensor) -> Tensor:
    return weight_OI.float().norm(dim=1, keepdim=True)
