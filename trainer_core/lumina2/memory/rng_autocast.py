"""What a second computation of a block must find as the first did: random numbers, for dropout, and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

DROPOUT_ATTRIBUTES = ("dropout", "rank_dropout", "module_dropout")
"""Numbers on the layers of LyCORIS, which draws without an nn.Dropout."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Taken before the first computation, restored for the second."""

    device: torch.device
    cpu_rng: Tensor | None
    """State of the generator; None where nothing is drawn, so that a CUDA graph may be captured."""
    device_rng: Tensor | None
    autocast_dtype: torch.dtype | None
    has_autocast_cache: bool

    @classmethod
    def now(cls, device: torch.device, *, is_random: bool) -> Conditions:
        """What a computation is about to find.

        Args:
            device: Where it runs.
            is_random: Whether it draws random numbers.
        """
        is_autocast = torch.is_autocast_enabled(device.type)
        return cls(
            device=device,
            cpu_rng=torch.get_rng_state() if is_random else None,
            device_rng=torch.cuda.get_rng_state(device) if is_random and device.type == "cuda" else None,
            autocast_dtype=torch.get_autocast_dtype(device.type) if is_autocast else None,
            has_autocast_cache=torch.is_autocast_cache_enabled(),
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The same conditions again; afterwards everything is as it was before."""
        autocast = torch.autocast(
            self.device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
            cache_enabled=self.has_autocast_cache,
        )
        if self.cpu_rng is None:
            with autocast:
                yield
            return
        with torch.random.fork_rng(devices=[] if self.device_rng is None else [self.device]), autocast:
            torch.set_rng_state(self.cpu_rng)
            if self.device_rng is not None:
                torch.cuda.set_rng_state(self.device_rng, self.device)
            yield


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether dropout of any kind is active in a module, in that of an adapter that replaced a layer's forward too.

    A module that draws otherwise says so by an attribute `draws_random_numbers`.
    """
    return any(_has_active_dropout(layer) for inner in module.modules() for layer in (inner, _owner_of_forward(inner)))


def _owner_of_forward(module: nn.Module) -> object:
    """LyCORIS puts its own method in the place of a layer's `forward`, and is no submodule of it."""
    return getattr(vars(module).get("forward"), "__self__", None)


def _has_active_dropout(layer: object) -> bool:
    if not getattr(layer, "training", False):
        return False
    if getattr(layer, "draws_random_numbers", False):
        return True
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    values = (getattr(layer, name, None) for name in DROPOUT_ATTRIBUTES)
    return any(isinstance(value, (int, float)) and value > 0 for value in values)
