"""Initial values of a LoRA: factors of the weight itself, or an existing file.

Shape suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import TrainerError
from .foreign_lora import read_foreign_lora
from .targets import LayerPlan

FACTORED_INITS = {"pissa": "pissa_niter_16", "olora": "olora"}
"""peft's names of the initial values that are factors of the weight. 16 iterations find the main directions to about
1e-3, in a hundredth of the time of a whole decomposition."""
LORA_INITS = ("default", "gaussian", *FACTORED_INITS)


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
