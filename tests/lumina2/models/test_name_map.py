"""Names of weights, both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lumina2_trainer.trainer_core.lumina2.models.name_map import (
    diffusers_row_slices,
    to_diffusers_modules,
    to_diffusers_state_dict,
    to_native_module,
)
from torch import Tensor

from ..tiny_models import TINY, tiny_transformer


def to_native_state_dict(diffusers_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers transformer's weights under native names, q, k and v stacked."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in diffusers_state.items():
        module, _, kind = name.rpartition(".")
        found = to_native_module(module)
        assert found is not None, f"no native name for {name}"
        parts.setdefault(f"{found[0]}.{kind}", {})[found[1] or 0] = tensor
    return {
        name: torch.cat([rows[i] for i in sorted(rows)]) if len(rows) > 1 else rows[0] for name, rows in parts.items()
    }


def test_state_dict_survives_the_round_trip() -> None:
    state = tiny_transformer().state_dict()
    back = to_native_state_dict(to_diffusers_state_dict(state, TINY))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


def test_diffusers_names_are_those_of_the_diffusers_class() -> None:
    from diffusers import Lumina2Transformer2DModel

    theirs = Lumina2Transformer2DModel(
        hidden_size=96, num_layers=3, num_attention_heads=4, num_kv_heads=2, cap_feat_dim=40, axes_dim_rope=(4, 8, 12)
    ).state_dict()
    ours = to_diffusers_state_dict(tiny_transformer().state_dict(), TINY)
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert to_native_state_dict(theirs).keys() == tiny_transformer().state_dict().keys()


def test_modules_map_both_ways() -> None:
    linears = [name for name, module in tiny_transformer().named_modules() if isinstance(module, torch.nn.Linear)]
    for native in linears:
        for part, diffusers in enumerate(to_diffusers_modules(native)):
            assert to_native_module(diffusers) == (native, part if native.endswith("qkv") else None)


def test_qkv_rows_are_those_of_grouped_query_attention() -> None:
    assert diffusers_row_slices("layers.1.attention.qkv", TINY) == [
        ("layers.1.attn.to_q", slice(0, 96)),
        ("layers.1.attn.to_k", slice(96, 144)),
        ("layers.1.attn.to_v", slice(144, 192)),
    ]
    assert diffusers_row_slices("final_layer.linear", TINY) == [("norm_out.linear_2", slice(None))]


def test_foreign_names_have_no_native_module() -> None:
    assert to_native_module("layers.0.attn.add_q_proj") is None
    assert to_native_module("context_refiner.0.norm1.linear") is None
    assert to_native_module("transformer_blocks.0.attn.to_q") is None
