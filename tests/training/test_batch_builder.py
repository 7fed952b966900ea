"""What a batch holds, and in which order."""

from __future__ import annotations

from pathlib import Path

import torch
from lumina2_trainer.trainer_core.training.graphs import shape_key

from .test_prefetch import SIZES, new_builder


def test_the_same_samples_in_any_order_have_one_shape(tmp_path: Path) -> None:
    builder = new_builder(tmp_path, batch_size=len(SIZES), caption_dropout=0.0)
    one_by_one = new_builder(tmp_path, batch_size=1, caption_dropout=0.0)
    orders, keys = set(), set()
    for start in range(0, 8 * len(SIZES), len(SIZES)):
        orders.add(tuple(one_by_one.build(start + i).ids[0] for i in range(len(SIZES))))
        keys.add(shape_key(builder.build(start).noisy))
    assert len(orders) > 1
    assert len(keys) == 1


def test_every_sample_keeps_the_draws_of_its_position(tmp_path: Path) -> None:
    batch = new_builder(tmp_path, batch_size=len(SIZES)).build(0)
    one_by_one = new_builder(tmp_path, batch_size=1)
    alone = {single.ids[0]: single for single in map(one_by_one.build, range(len(SIZES)))}
    assert sorted(batch.ids) == sorted(alone)
    parts = batch.noisy.noisy_TC.split(batch.noisy.layout.image.segments.lengths)
    for name, timestep, part in zip(batch.ids, batch.timesteps_B, parts, strict=True):
        torch.testing.assert_close(timestep[None], alone[name].timesteps_B)
        torch.testing.assert_close(part, alone[name].noisy.noisy_TC)
