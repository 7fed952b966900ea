"""Loading a base with matrices of 8 and 4 bits."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer
from lumina2_trainer.trainer_core.lumina2.quant import eight_bit, four_bit
from lumina2_trainer.trainer_core.lumina2.quant.compressed_linear import CompressedLinear
from lumina2_trainer.trainer_core.lumina2.quant.eight_bit import quantize_weight
from lumina2_trainer.trainer_core.lumina2.quant.four_bit import pack
from lumina2_trainer.trainer_core.lumina2.quant.precision import MATRIX_FORMATS
from lumina2_trainer.trainer_core.lumina2.weights import module_weights
from torch import Tensor

from ..tiny_files import split_state, write_diffusers_folder, write_split
from ..tiny_models import CPU, tiny_transformer


@pytest.mark.parametrize("layout", ["split", "diffusers"])
@pytest.mark.parametrize("matrix_dtype", list(MATRIX_FORMATS))
def test_matrices_are_quantised_one_by_one_while_loading(
    layout: str, matrix_dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_split(tmp_path, "transformer") if layout == "split" else write_diffusers_folder(tmp_path / "model")
    full: list[weakref.ref[Tensor]] = []

    def make_empty(*arguments: Any, **options: Any) -> Tensor:
        assert [matrix for matrix in full if matrix() is not None] == []
        return torch.empty(*arguments, **options)

    def quantize_and_watch(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        full.append(weakref.ref(weight))
        return quantize_weight(weight, dtype)

    def pack_and_watch(weight: Tensor) -> tuple[Tensor, Tensor]:
        full.append(weakref.ref(weight))
        return pack(weight)

    monkeypatch.setattr(eight_bit, "quantize_weight", quantize_and_watch)
    monkeypatch.setattr(four_bit, "pack", pack_and_watch)
    monkeypatch.setattr(module_weights, "torch", SimpleNamespace(empty=make_empty))
    loaded = load_transformer(path, device=CPU, dtype=torch.bfloat16, matrix_dtype=matrix_dtype)
    monkeypatch.undo()
    assert len(full) == 7 * 5 + 5
    expected = tiny_transformer().bfloat16()
    for name, module in loaded.named_modules():
        if isinstance(module, CompressedLinear):
            original = expected.get_submodule(name)
            assert torch.equal(module.weight, MATRIX_FORMATS[matrix_dtype](original.weight, None).weight)
            assert (module.bias is None) == (original.bias is None)
            assert module.bias is None or torch.equal(module.bias, original.bias)


def test_an_fp8_file_stays_exact_in_fp8(tmp_path: Path) -> None:
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in split_state("transformer").items()}
    path = write_split(tmp_path, "transformer", stored)
    loaded = load_transformer(path, device=CPU, dtype=torch.bfloat16, matrix_dtype=torch.float8_e4m3fn)
    for name, tensor in stored.items():
        owner, _, attribute = name.rpartition(".")
        assert torch.equal(getattr(loaded.get_submodule(owner), attribute), tensor.bfloat16()), name
