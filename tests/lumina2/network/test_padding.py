"""How far samples are filled up."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.network import padding
from lumina2_trainer.trainer_core.lumina2.network.layout import PaddedLengths
from lumina2_trainer.trainer_core.lumina2.network.padding import MAX_EXACT_SHAPES, ShapeLimiter, choose_padding
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config


@pytest.mark.parametrize(
    ("captions", "images", "expected"),
    [
        ([120], [4096], PaddedLengths(caption=128, image=4096)),
        ([129, 20], [4000, 4032], PaddedLengths(caption=256, image=4096)),
        ([65], [1000], PaddedLengths(caption=128, image=1024)),
        ([20, 20], [4096, 1024], None),  # two resolutions in one batch
        ([60, 10], [960, 1056], PaddedLengths(caption=64, image=1088)),
        ([1], [64], PaddedLengths(caption=64, image=64)),
        ([10] * 7 + [250], [1024] * 8, None),  # seven captions of mere padding
    ],
)
def test_samples_are_filled_up_to_the_next_multiples(
    captions: list[int], images: list[int], expected: PaddedLengths | None
) -> None:
    assert choose_padding(captions, images) == expected


def test_first_shapes_of_a_run_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "has_padded_attention", lambda *_: True)
    limiter = ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.bfloat16)
    for length in range(10, 10 + MAX_EXACT_SHAPES):
        assert limiter.padded_lengths([length], [4096]) is None
    assert limiter.padded_lengths([100], [4096]) == PaddedLengths(caption=128, image=4096)
    assert limiter.padded_lengths([10], [4096]) is None


def test_samples_of_a_batch_are_filled_up_to_the_longest_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "has_padded_attention", lambda *_: True)
    limiter = ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.bfloat16)
    assert limiter.padded_lengths([120, 75], [1024, 1024]) == PaddedLengths(caption=120, image=1024)
    assert limiter.padded_lengths([75, 121], [1024, 1020]) == PaddedLengths(caption=128, image=1024)
    assert limiter.padded_lengths([75, 75], [1020, 1020]) is None
    assert limiter.padded_lengths([20, 20], [4096, 1024]) is None


def test_nothing_is_filled_up_without_the_attention_for_it() -> None:
    limiter = ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.bfloat16)
    assert all(limiter.padded_lengths([length], [4096]) is None for length in range(10, 30))
