"""Finding checkpoints, and the state of optimizers in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.trainer_core.training.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from torch import Tensor, nn

PARTS = ("exp_avg", "exp_avg_sq", "step")


class NestedAdam(torch.optim.Adam):
    """Tells its state in parts within parts, as bitsandbytes does."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        nested = {i: {"kind": {"bits": 8}, "parts": {"of": dict(values)}} for i, values in state["state"].items()}
        return {**state, "state": nested}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        assert all(values["kind"] == {"bits": 8} for values in state_dict["state"].values())
        flat = {i: values["parts"]["of"] for i, values in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": flat})


def test_checkpoints_are_ordered_by_number_beyond_a_million(tmp_path: Path) -> None:
    for step in (999750, 1000000, 1000250):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "training_state.json").write_text("{}")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-999750", "step-1000000", "step-1000250"]


def test_copies_that_a_user_made_of_a_checkpoint_are_none(tmp_path: Path) -> None:
    for name in ("step-000250", "step-000250 - Copy", "step-000250 copy", "step-000500-2", "step-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_state.json").write_text("{}")
    prune_checkpoints(tmp_path, 1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000250"]
    assert len(list(tmp_path.iterdir())) == 5


def test_nested_state_of_an_optimizer_comes_back_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizers = [NestedAdam(layer.parameters(), lr=0.1) for layer in (trained, other)]
    trained(torch.randn(4, 3)).sum().backward()
    optimizers[0].step()
    parameters = dict(trained.named_parameters())
    save_checkpoint(tmp_path / "step-1", step=1, parameters=parameters, optimizer=optimizers[0], files=[])
    assert load_checkpoint(tmp_path / "step-1", dict(other.named_parameters()), optimizers[1]) == 1
    for mine, stored in zip(trained.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(stored, mine, rtol=0, atol=0)
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (mine, stored), strict=True)]
        assert set(states[0]) == set(states[1]) == set(PARTS)
        for part in PARTS:
            torch.testing.assert_close(states[1][part], states[0][part], rtol=0, atol=0)


def test_as_many_checkpoints_stay_as_asked_for_and_they_are_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "training_state.json").write_text("{}")
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000004", "step-000005"]


def test_the_average_and_what_groups_hold_come_back(tmp_path: Path) -> None:
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    optimizers = [torch.optim.SGD(layer.parameters(), lr=rate) for layer, rate in zip(layers, (0.1, 0.7), strict=True)]
    for optimizer, value in zip(optimizers, (0.25, 0.0), strict=True):
        optimizer.param_groups[0]["estimate"] = torch.tensor([value])  # as Prodigy keeps one
    parameters = [dict(layer.named_parameters()) for layer in layers]
    averages: list[dict[str, Tensor]] = [
        {name: torch.full_like(parameter, value) for name, parameter in named.items()}
        for named, value in zip(parameters, (2.0, 0.0), strict=True)
    ]
    save_checkpoint(
        tmp_path / "step-1",
        step=1,
        parameters=parameters[0],
        optimizer=optimizers[0],
        files=[],
        average=averages[0],
    )
    load_checkpoint(tmp_path / "step-1", parameters[1], optimizers[1], averages[1])
    assert all(torch.equal(averages[1][name], averages[0][name]) for name in parameters[0])
    assert optimizers[1].param_groups[0]["estimate"].tolist() == [0.25]
    assert optimizers[1].param_groups[0]["lr"] == 0.1
