"""Batches on their way to a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ..lumina2.tiny_models import CPU
from ..training.test_prefetch import assert_same_batch, new_builder, new_prefetcher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")


def test_batches_built_ahead_reach_the_gpu_unchanged(tmp_path: Path) -> None:
    builder, inline = new_builder(tmp_path), new_builder(tmp_path)
    prefetcher = new_prefetcher(lambda position: builder.build(position).pinned(), end=40)
    for position in range(0, 40, 2):
        batch = prefetcher.take(position)
        assert batch.noisy.noisy_TC.is_pinned()
        assert batch.noisy.layout.joint.rotary.cos.is_pinned()
        on_gpu = batch.on(torch.device("cuda"))
        assert on_gpu.noisy.prompt_embeds_L.is_cuda
        assert_same_batch(on_gpu.on(CPU), inline.build(position))
