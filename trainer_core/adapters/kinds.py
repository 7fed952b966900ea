"""Every kind of adapter by name, and what a run does with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from .lora import LoRASettings, attach_lora, check_lora, export_lora, restore_lora_start
from .lycoris import attach_lycoris, check_lycoris, export_lycoris
from .lycoris_layer import LycorisLinear
from .lycoris_settings import LYCORIS_ALGORITHMS, LyCORISSettings

AdapterSettings = LoRASettings | LyCORISSettings
"""What LoRA Settings and LyCORIS Settings give."""


class Attach(Protocol):
    """Puts an adapter on a transformer, in place, and gives what is trained, by name."""

    def __call__(
        self, transformer: nn.Module, settings: Any, *, rank: int, alpha: float, seed: int
    ) -> dict[str, nn.Parameter]: ...


class Check(Protocol):
    """Refuses settings that do not suit a transformer; reads no weights."""

    def __call__(self, transformer: nn.Module, settings: Any, *, rank: int, alpha: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """A kind of adapter, as functions."""

    check: Check
    attach: Attach
    export: Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]]
    """Tensors with ComfyUI keys, from the transformer and the parameters or averages of them."""
    restore: Callable[[nn.Module, Mapping[str, Tensor]], None] = lambda transformer, exported: None
    """Takes over from an exported file what is not among the parameters."""


LORA = AdapterKind(check=check_lora, attach=attach_lora, export=export_lora, restore=restore_lora_start)
LYCORIS = AdapterKind(check=check_lycoris, attach=attach_lycoris, export=export_lycoris)

ADAPTERS: dict[str, AdapterKind] = {"lora": LORA, **dict.fromkeys(LYCORIS_ALGORITHMS, LYCORIS)}
"""By the `kind` of their settings."""


@contextmanager
def without_adapter(transformer: nn.Module) -> Iterator[None]:
    """The frozen base alone within this context, whatever kind of adapter is attached."""
    switched = []
    for module in transformer.modules():
        # peft's own way to switch an adapter off also stops its gradients, which must stay.
        name, off = ("is_enabled", False) if isinstance(module, LycorisLinear) else ("_disable_adapters", True)
        if hasattr(module, name):
            switched.append((module, name, getattr(module, name)))
            setattr(module, name, off)
    try:
        yield
    finally:
        for module, name, value in switched:
            setattr(module, name, value)
