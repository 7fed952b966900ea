"""The counter that memory tests rely on."""

from __future__ import annotations

import torch

from .live_bytes import LiveBytes


def test_live_bytes_follow_views_frees_and_fake_tensors() -> None:
    with LiveBytes() as live:
        x = torch.zeros(256)
        view = x[:10]
        assert (live.now, live.peak) == (1024, 1024)
        y = x + 1
        assert live.now == 2048
        del x, y
        assert (live.now, live.peak) == (1024, 2048)
        del view
        assert live.now == 0
