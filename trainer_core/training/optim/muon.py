"""Muon for matrices, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """PyTorch's Muon (Jordan et al., https://kellerjordan.github.io/posts/muon) where a parameter is a matrix.

    Its updates are made as long as AdamW's (Liu et al., arXiv:2502.16982), so both take the same learning rate.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> None:
        """
        Args:
            groups: Parameter groups; a weight_decay of their own counts.
            lr: Learning rate.
            momentum: Of the matrices.
            weight_decay: Decoupled.
        """
        matrices = _select(groups, lambda parameter: parameter.ndim == 2)
        others = _select(groups, lambda parameter: parameter.ndim != 2)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts read and write the groups and the state of this optimizer."""
        first = 0
        for part in self._parts:
            part.param_groups = self.param_groups[first : first + len(part.param_groups)]
            part.state = self.state
            first += len(part.param_groups)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "no optimizer of this project takes a closure"
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's."""
        super().load_state_dict(state_dict)
        self._share()


def _select(groups: Sequence[dict[str, Any]], wanted: Any) -> list[dict[str, Any]]:
    """The groups with some of their parameters only; groups without any are left out."""
    chosen = [{**group, "params": list(filter(wanted, group["params"]))} for group in groups]
    return [group for group in chosen if group["params"]]
