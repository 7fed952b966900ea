"""The rotary tables of a batch."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.network.layout import TokenLayout

from ..tiny_models import CPU


@pytest.mark.parametrize("axes_dims", [(32, 32, 32), (8, 6, 10)])
@pytest.mark.parametrize(("length", "rows", "columns"), [(1, 3, 5), (299, 7, 600), (120, 64, 64)])
def test_rotation_is_the_float64_angle_of_each_position(
    length: int, rows: int, columns: int, axes_dims: tuple[int, ...]
) -> None:
    layout = TokenLayout.build((length,), ((rows, columns),), axes_dims, CPU)
    caption = [(i, 0, 0) for i in range(length)]
    image = [(length, row, column) for row in range(rows) for column in range(columns)]
    for stream, positions in ((layout.caption, caption), (layout.image, image), (layout.joint, caption + image)):
        angles = [
            torch.tensor([p[axis] for p in positions], dtype=torch.float64)[:, None]
            * 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            for axis, dim in enumerate(axes_dims)
        ]
        angle = torch.cat(angles, -1)[:, None]
        assert torch.equal(stream.rotary.cos, angle.cos().float())
        assert torch.equal(stream.rotary.sin, angle.sin().float())
