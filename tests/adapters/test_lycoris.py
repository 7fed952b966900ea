"""LyCORIS adapters that start from a file: what is taken over, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters.kinds import ADAPTERS
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.adapters.lycoris_settings import LyCORISSettings
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from safetensors.torch import save_file

from ..lumina2.tiny_models import TINY, relative_error, run_packed, tiny_transformer
from .test_kinds import ALPHA, RANK, SAMPLES, TARGETS, VARIANTS, attach, export, scatter


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not isinstance(VARIANTS[name], LoRASettings)])
def test_lycoris_goes_on_from_its_own_file(variant: str, tmp_path: Path) -> None:
    settings = VARIANTS[variant]
    transformer, parameters = attach(settings)
    scatter(parameters)
    saved = export(settings, transformer, parameters)
    save_file(saved, tmp_path / "start.safetensors")
    going_on = replace(settings, start_from=str(tmp_path / "start.safetensors"))
    again, there = attach(going_on)
    torch.testing.assert_close(export(going_on, again, there), saved, rtol=1e-5, atol=1e-7)
    for theirs, ours in zip(run_packed(again.eval(), *SAMPLES), run_packed(transformer.eval(), *SAMPLES), strict=True):
        assert relative_error(theirs.detach(), ours.detach()) < 1e-5
    with torch.device("meta"):
        ADAPTERS[settings.kind].check(Lumina2Transformer(TINY), going_on, rank=RANK, alpha=ALPHA)


@pytest.mark.parametrize("variant", ["lokr", "loha", "glora", "full"])
def test_values_are_taken_over_exactly_where_nothing_is_scaled(variant: str, tmp_path: Path) -> None:
    settings = VARIANTS[variant]
    first, parameters = tiny_transformer(), {}
    parameters = ADAPTERS[variant].attach(first, settings, rank=8, alpha=8.0, seed=1)
    scatter(parameters)
    save_file(export(settings, first, parameters), tmp_path / "start.safetensors")
    going_on = replace(settings, start_from=str(tmp_path / "start.safetensors"))
    there = ADAPTERS[variant].attach(tiny_transformer(), going_on, rank=8, alpha=8.0, seed=2)
    assert there.keys() == parameters.keys()
    assert all(torch.equal(there[name], parameters[name]) for name in there)


START_REFUSALS = {
    "another kind": (
        {"algorithm": "loha"},
        RANK,
        "holds lokr with a whole second factor for .*, but algorithm is loha",
    ),
    "fewer layers": ({"targets": "attention"}, RANK, "which is not among the layers trained here"),
    "another factor": ({"factor": 4}, RANK, "has lokr_w1 of shape .* but lokr_w1 of shape .* is trained here"),
    "by rank": ({"full_matrix": False}, RANK, "has lokr_w2 of shape .*, but no lokr_w2 is trained|lokr_w2"),
}


@pytest.mark.parametrize("case", START_REFUSALS)
def test_a_file_that_does_not_fit_is_refused_before_weights_load(case: str, tmp_path: Path) -> None:
    changes, rank, match = START_REFUSALS[case]
    settings = LyCORISSettings(targets="attention_mlp")
    transformer, parameters = attach(settings)
    save_file(export(settings, transformer, parameters), tmp_path / "start.safetensors")
    changed = replace(settings, start_from=str(tmp_path / "start.safetensors"), **changes)
    with torch.device("meta"), pytest.raises(TrainerError, match=match):
        ADAPTERS[changed.kind].check(Lumina2Transformer(TINY), changed, rank=rank, alpha=ALPHA)


def test_lengths_of_rows_are_not_dropped_silently(tmp_path: Path) -> None:
    settings = VARIANTS["lokr, dora"]
    transformer, parameters = attach(settings)
    save_file(export(settings, transformer, parameters), tmp_path / "start.safetensors")
    plain = LyCORISSettings(targets=TARGETS, start_from=str(tmp_path / "start.safetensors"))
    with pytest.raises(TrainerError, match="turn weight_decompose on"):
        attach(plain)


def test_alpha_in_a_file_is_read(tmp_path: Path) -> None:
    settings = LyCORISSettings(algorithm="loha", targets="attention")
    transformer, parameters = attach(settings)
    scatter(parameters)
    saved = export(settings, transformer, parameters)
    halved = {f"{key.removesuffix('.hada_w1_a')}.alpha": torch.tensor(RANK / 2) for key in saved if "hada_w1_a" in key}
    save_file({**saved, **halved}, tmp_path / "start.safetensors")
    going_on = replace(settings, start_from=str(tmp_path / "start.safetensors"))
    again = export(going_on, *attach(going_on))
    name = next(key for key in saved if "hada_w1_a" in key)
    torch.testing.assert_close(again[name], saved[name] / 2)
