"""Decimal numbers typed into nodes reach the prompt as they were typed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..host.server import HostServer
from .frontend import Frontend, renderings

TYPED = {
    "Lumina2Optimizer": {
        "weight_decay": "0.0001",
        "beta1": "0.955",
        "beta2": "0.9995",
        "epsilon": "1e-10",
        "max_grad_norm": "0.04",
    },
    "Lumina2TrainLoRA": {"learning_rate": "0.00000005", "alpha": "0.25", "caption_dropout": "0.125"},
    "Lumina2NoiseSchedule": {"static_shift": "3.15825"},
}


@pytest.mark.parametrize("node_type", TYPED)
def test_typed_number_is_kept(clear_page: Callable[..., Frontend], server: HostServer, node_type: str) -> None:
    for settings in renderings(server):
        frontend = clear_page(settings={**settings, "Comfy.Node.AlwaysShowAdvancedWidgets": True})
        frontend.add_node(node_type)
        for name, text in TYPED[node_type].items():
            frontend.type_number(name, text)
        (node,) = frontend.to_prompt().values()
        expected = {name: float(text) for name, text in TYPED[node_type].items()}
        assert {name: node["inputs"][name] for name in expected} == expected, settings
        assert {name: frontend.shown_number(name) for name in expected} == expected, settings
        assert frontend.errors == []


def test_arrows_add_the_step_and_no_noise(clear_page: Callable[..., Frontend], server: HostServer) -> None:
    for settings in renderings(server):
        frontend = clear_page(settings=settings)
        frontend.add_node("Lumina2Optimizer")
        frontend.type_number("max_grad_norm", "0.2")
        frontend.raise_number("max_grad_norm")
        (node,) = frontend.to_prompt().values()
        assert node["inputs"]["max_grad_norm"] == 0.3, settings
