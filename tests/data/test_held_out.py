"""Which pictures are held out."""

from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.data.cache import TrainingSample
from lumina2_trainer.trainer_core.data.held_out import split_samples
from lumina2_trainer.trainer_core.errors import TrainerError


def sample(
    number: int, folder: int = 1, *, is_regularisation: bool = False, is_held_out: bool = False
) -> TrainingSample:
    return TrainingSample(
        id=f"{folder}/{number}.png",
        file_name=f"{number}.png",
        latents_path=Path("x"),
        embeds_path=Path("y"),
        caption="",
        width=64,
        height=64,
        repeats=1,
        folder=folder,
        is_regularisation=is_regularisation,
        is_held_out=is_held_out,
        content_hash=f"content {number}",
    )


def held_out_ids(samples: list[TrainingSample], share: float) -> set[str]:
    return {s.id for s in split_samples(samples, share)[1]}


def test_share_is_held_out_and_adding_files_moves_none() -> None:
    few, many = ([sample(number) for number in range(count)] for count in (400, 1000))
    training, held_out = split_samples(many, 0.1)
    assert len(held_out) == pytest.approx(100, abs=30)
    assert len(training) + len(held_out) == 1000
    assert held_out_ids(few, 0.1) == held_out_ids(many, 0.1) & {s.id for s in few}
    assert held_out_ids(many, 0.1) < held_out_ids(many, 0.2)


def test_content_decides_and_not_the_name_so_copies_stay_together() -> None:
    samples = [sample(number) for number in range(40)]
    copies = [sample(number, folder=2) for number in reversed(range(40))]
    ids = held_out_ids(samples + copies, 0.25)
    assert {i.partition("/")[2] for i in ids if i.startswith("1/")} == {
        i.partition("/")[2] for i in ids if i.startswith("2/")
    }


def test_two_are_held_out_of_few_and_none_without_a_share() -> None:
    samples = [sample(number) for number in range(5)]
    assert len(held_out_ids(samples, 0.01)) == 2
    assert split_samples(samples, 0.0) == (tuple(samples), ())


def test_regularisation_pictures_are_always_trained_on() -> None:
    samples = [sample(n) for n in range(30)] + [sample(n, 2, is_regularisation=True) for n in range(30, 60)]
    _, held_out = split_samples(samples, 0.5)
    assert held_out and not any(s.is_regularisation for s in held_out)


def test_a_split_that_leaves_nothing_is_refused() -> None:
    message = "held_out_share is 0.2, which would hold out 2 of 2 pictures and leave none"
    with pytest.raises(TrainerError, match=message):
        split_samples([sample(1), sample(2)], 0.2)


def test_a_folder_is_held_out_with_its_copies_elsewhere_and_beside_a_share() -> None:
    samples = [sample(n) for n in range(40)] + [sample(n, 2, is_held_out=True) for n in range(38, 43)]
    training, held_out = split_samples(samples, 0.0)
    assert {s.id for s in held_out} == {f"2/{n}.png" for n in range(38, 43)} | {"1/38.png", "1/39.png"}
    assert [s.id for s in training] == [f"1/{n}.png" for n in range(38)]
    with_share = held_out_ids(samples, 0.2)
    assert with_share - {s.id for s in held_out} == held_out_ids([sample(n) for n in range(38)], 0.2)


@pytest.mark.parametrize(
    ("count", "others", "message"),
    [(1, 5, "is_held_out is on for a single picture"), (3, 0, "is_held_out is on for all pictures")],
)
def test_a_folder_that_cannot_be_held_out_is_refused(count: int, others: int, message: str) -> None:
    samples = [sample(n, 2, is_held_out=True) for n in range(count)] + [sample(9 + n) for n in range(others)]
    with pytest.raises(TrainerError, match=message):
        split_samples(samples, 0.0)
