"""How far samples are filled up."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.layout import PaddedLengths
from lumina2_trainer.trainer_core.lumina2.transformer import Lumina2Config
from lumina2_trainer.trainer_core.training import shapes
from lumina2_trainer.trainer_core.training.shapes import MAX_EXACT_SHAPES, ShapeLimiter, choose_padding


@pytest.mark.parametrize(
    ("captions", "images", "multiple", "expected"),
    [
        ([120], [4096], 128, PaddedLengths(caption=128, image=4096)),
        ([129, 20], [4000, 4032], 128, PaddedLengths(caption=256, image=4096)),
        ([129, 20], [4000, 4032], 1, PaddedLengths(caption=129, image=4032)),
        ([65], [1000], 64, PaddedLengths(caption=128, image=1024)),
        ([20, 20], [4096, 1024], 128, None),  # two resolutions in one batch
        ([60, 10], [960, 1056], 64, PaddedLengths(caption=64, image=1088)),
        ([1], [64], 64, PaddedLengths(caption=64, image=64)),
        ([10] * 7 + [250], [1024] * 8, 64, None),  # seven captions of mere padding
    ],
)
def test_samples_are_filled_up_to_the_next_multiples(
    captions: list[int], images: list[int], multiple: int, expected: PaddedLengths | None
) -> None:
    assert choose_padding(captions, images, multiple=multiple) == expected


def test_first_shapes_of_a_run_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "has_padded_attention", lambda *_: True)
    limiter = ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.bfloat16)
    for length in range(10, 10 + MAX_EXACT_SHAPES):
        assert limiter.padded_lengths([length], [4096]) is None
    assert limiter.padded_lengths([100], [4096]) == PaddedLengths(caption=128, image=4096)
    assert limiter.padded_lengths([10], [4096]) is None


def test_samples_of_a_batch_get_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "has_padded_attention", lambda *_: True)
    limiter = ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.bfloat16)
    assert limiter.padded_lengths([40, 75, 120], [4096] * 3) == PaddedLengths(caption=120, image=4096)
    assert limiter.padded_lengths([75, 75], [4096] * 2) is None


def test_nothing_is_filled_up_without_the_attention_for_it() -> None:
    limiter = ShapeLimiter(Lumina2Config(), torch.device("cpu"), torch.bfloat16)
    assert all(limiter.padded_lengths([length], [4096]) is None for length in range(10, 30))
