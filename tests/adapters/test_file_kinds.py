"""What the tensors of a file do to a weight, by hand."""

from __future__ import annotations

import torch
from lumina2_trainer.trainer_core.adapters.file_kinds import change_of_weight

FLOAT32_EPSILON = 2.0**-23


def test_dora_divides_by_the_length_of_a_row_and_float32s_epsilon() -> None:
    weight_OI = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    parts = {
        "lora_A.weight": torch.tensor([[1.0, 2.0, -1.0]]),
        "lora_B.weight": torch.tensor([[0.5], [1e-6]]),
        "dora_scale": torch.tensor([[10.0], [0.25]]),
    }
    change_OI = change_of_weight("layers.0.attention.out", parts, weight_OI, 0.5)
    first = 0.5 * (torch.tensor([3.5, 5.0, -0.5]) * 10 / 5 - torch.tensor([3.0, 4.0, 0.0]))
    second = 0.5 * torch.tensor([1e-6, 2e-6, -1e-6]) * 0.25 / FLOAT32_EPSILON
    assert change_OI.isfinite().all()
    torch.testing.assert_close(change_OI, torch.stack([first, second]))
