from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.data.batches import SampleStream
from lumina2_trainer.trainer_core.data.cache import TrainingSample
from lumina2_trainer.trainer_core.data.folder import SAMPLINGS, Dataset, DatasetFolderSettings, open_dataset
from lumina2_trainer.trainer_core.data.index import LatentIndex, LatentSample
from lumina2_trainer.trainer_core.data.mixing import BLOCK, MixedStream, make_stream
from lumina2_trainer.trainer_core.errors import TrainerError

from .sample_files import make_context, open_folder, write_pictures

REPEATS = [1, 1, 2, 1, 1, 1, 3, 1]
FOLDERS = [1, 1, 1, 2, 2, 2, 2, 3]


def new_stream(seed: int = 5, weights: tuple[float, ...] = (0.5, 3.0, 1.5)) -> MixedStream:
    return MixedStream(REPEATS, FOLDERS, dict(enumerate(weights, start=1)), seed)


def folders_of(stream: MixedStream, count: int) -> Counter[int]:
    return Counter(FOLDERS[stream.sample_at(position)] for position in range(count))


@pytest.mark.parametrize("weights", [(0.5, 3.0, 1.5), (1.0, 1.0, 1.0), (1000.0, 1.0, 1e-3)])
def test_folders_get_their_share(weights: tuple[float, ...]) -> None:
    count = 200 * BLOCK
    drawn = folders_of(new_stream(weights=weights), count)
    for folder, weight in enumerate(weights, start=1):
        assert drawn[folder] == pytest.approx(count * weight / sum(weights), abs=60), folder


def test_small_weights_are_shares_to_the_last_digit() -> None:
    weights, num_blocks = (0.1, 0.2, 0.7), 200
    drawn = folders_of(new_stream(weights=weights), num_blocks * BLOCK)
    for folder, weight in enumerate(weights, start=1):
        # A block is at most half a sample's deviation off; four of so many are 28, and 0.01 more of each weight 98.
        bound = 4 * 0.5 * num_blocks**0.5
        assert drawn[folder] == pytest.approx(num_blocks * BLOCK * weight, abs=bound), folder


def test_every_block_has_the_shares_to_within_one() -> None:
    stream = new_stream()
    for block in range(20):
        drawn = Counter(FOLDERS[stream.sample_at(block * BLOCK + i)] for i in range(BLOCK))
        for folder, share in ((1, 0.1), (2, 0.6), (3, 0.3)):
            assert abs(drawn[folder] - BLOCK * share) < 1 + 1e-9


def test_a_folder_is_gone_through_before_a_picture_comes_again() -> None:
    stream = new_stream()
    order = [sample for sample in map(stream.sample_at, range(5 * BLOCK)) if FOLDERS[sample] == 2]
    for start in range(0, len(order) - 6, 6):
        assert Counter(order[start : start + 6]) == {3: 1, 4: 1, 5: 1, 6: 3}


def test_the_order_is_a_function_of_seed_and_position() -> None:
    whole = [new_stream().sample_at(position) for position in range(3 * BLOCK)]
    assert [new_stream().sample_at(position) for position in reversed(range(3 * BLOCK))] == whole[::-1]
    assert [new_stream(seed=6).sample_at(position) for position in range(3 * BLOCK)] != whole


def test_resuming_far_into_a_run_is_exact_and_quick() -> None:
    stream, far = new_stream(), 300000
    for position in range(far):
        if position % 1000 == 0:
            stream.sample_at(position)
    started = time.monotonic()
    resumed = new_stream()
    assert [resumed.sample_at(far + i) for i in range(50)] == [stream.sample_at(far + i) for i in range(50)]
    assert time.monotonic() - started < 10


def test_a_pass_is_as_many_samples_as_all_folders_hold() -> None:
    assert [new_stream().epoch_at(position) for position in (0, 10, 11, 22)] == [0, 0, 1, 2]


def index_of(tmp_path: Path, *folders: dict[str, object]) -> LatentIndex:
    """An index of folders with 2, 3, 4, ... pictures."""
    return LatentIndex(
        cache_dir=tmp_path,
        folders=tuple(DatasetFolderSettings(folder="set", **settings) for settings in folders),
        samples=tuple(
            LatentSample(
                id=f"{number}/{picture}.png",
                file_name=f"{picture}.png",
                latents=f"{number}-{picture}",
                width=64,
                height=64,
                repeats=settings.get("repeats", 1),
                content_hash="",
            )
            for number, settings in enumerate(folders, start=1)
            for picture in range(number + 1)
        ),
    )


def test_weights_follow_from_size_probability_and_sampling(tmp_path: Path) -> None:
    assert index_of(tmp_path, {}, {}).folder_weights == {}
    assert index_of(tmp_path, {"probability": 0.3}).folder_weights == {}
    assert index_of(tmp_path, {"probability": 2.0}, {"probability": 2.0}).folder_weights == {}
    weighted = index_of(tmp_path, {"probability": 0.5, "repeats": 10}, {})
    assert weighted.folder_weights == {1: 10.0, 2: 3.0}
    uniform = index_of(tmp_path, {"probability": 0.5, "sampling": "uniform"}, {"sampling": "uniform"})
    assert uniform.folder_weights == {1: 0.5, 2: 1.0}
    assert set(SAMPLINGS) == {"auto", "uniform"}


def test_only_what_changes_the_order_changes_the_fingerprint(tmp_path: Path) -> None:
    plain = index_of(tmp_path, {}, {}).fingerprint
    assert index_of(tmp_path, {"probability": 2.0}, {"probability": 2.0}).fingerprint == plain
    assert index_of(tmp_path, {"crop_style": "corner"}, {}).fingerprint == plain
    others = [
        index_of(tmp_path, {"probability": 2.0}, {}).fingerprint,
        index_of(tmp_path, {"is_regularisation": True}, {}).fingerprint,
        index_of(tmp_path, {}, {"is_regularisation": True}).fingerprint,
    ]
    assert len({plain, *others}) == 4


def samples_of(weights: tuple[float | None, float | None]) -> list[TrainingSample]:
    nowhere = Path("nowhere")
    return [
        TrainingSample(
            id=f"{folder}/{number}.png",
            file_name="",
            latents_path=nowhere,
            embeds_path=nowhere,
            caption="",
            width=64,
            height=64,
            repeats=2,
            folder=folder,
            folder_weight=weights[folder - 1],
        )
        for folder in (1, 2)
        for number in range(3)
    ]


def test_folders_without_weights_keep_todays_order() -> None:
    stream, usual = make_stream(samples_of((None, None)), 7), SampleStream([2] * 6, 7)
    assert [stream.sample_at(i) for i in range(40)] == [usual.sample_at(i) for i in range(40)]
    mixed = make_stream(samples_of((9.0, 1.0)), 7)
    assert Counter(mixed.sample_at(i) // 3 for i in range(10 * BLOCK))[0] == pytest.approx(9 * BLOCK, abs=10)


def open_two(tmp_path: Path, first: dict[str, object], second: dict[str, object]) -> Dataset:
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input", {"one/a.png": (8, 8), "two/a.png": (8, 8)})
    earlier = open_folder(context, "one", **first)
    return open_dataset(DatasetFolderSettings(folder="two", **second), earlier=earlier, context=context)


def test_folders_of_a_dataset_are_sampled_alike(tmp_path: Path) -> None:
    with pytest.raises(
        TrainerError, match="sampling is 'auto' for folder 'two' but 'uniform' for 'one': choose the same"
    ):
        open_two(tmp_path, {"sampling": "uniform"}, {})


def test_resolutions_of_a_folder_share_its_probability(tmp_path: Path) -> None:
    settings = {"sampling": "uniform", "probability": 0.6}
    dataset = open_two(tmp_path, {**settings, "more_resolutions": "128, 192"}, settings)
    assert [f.settings.probability for f in dataset.folders] == pytest.approx([0.2, 0.2, 0.2, 0.6])
