"""Where CUDA graphs are captured; what they compute is tested on a GPU."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.training.graphs import allows_graphs


@pytest.mark.parametrize(("allocator", "expected"), [("native", True), ("cudaMallocAsync", False)])
def test_no_graph_is_captured_where_memory_is_only_promised(
    monkeypatch: pytest.MonkeyPatch, allocator: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: allocator)
    assert allows_graphs(torch.device("cuda")) is expected
    assert not allows_graphs(torch.device("cpu"))
