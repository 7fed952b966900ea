from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import (
    EmbedCache,
    join_samples,
    load_embeds,
    read_embed_index,
    read_latent_index,
)
from lumina2_trainer.trainer_core.data.cache_latents import fill_latent_cache
from lumina2_trainer.trainer_core.data.cache_text_embeds import PromptPlan, fill_embed_cache
from lumina2_trainer.trainer_core.data.folder import Dataset, DatasetFolderSettings, open_dataset
from lumina2_trainer.trainer_core.data.index import EmbedIndex, LatentIndex, write_index
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError

from .sample_files import (
    FakeTextEncoder,
    FakeVAE,
    Listener,
    fake_embeds,
    make_context,
    noise_picture,
    open_folder,
    write_pictures,
)

SYSTEM = "Draw well:"


def plan_with(**changes: Any) -> PromptPlan:
    settings = {"system_prompt": SYSTEM, "build_prompt": lambda caption: f"{SYSTEM} {caption}"}
    return PromptPlan(**{**settings, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "input" / "set"
    write_pictures(path, {"a.png": (64, 64), "b.png": (64, 64), "c.png": (64, 64)})
    return path


@pytest.fixture
def context(tmp_path: Path, folder: Path) -> StepContext:
    return make_context(tmp_path)


@pytest.fixture
def dataset(context: StepContext) -> Dataset:
    return open_folder(context)


def fill(
    dataset: Dataset,
    context: StepContext,
    encoder: FakeTextEncoder,
    plan: PromptPlan | None = None,
    *,
    fingerprint: str = "gemma 1",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 2,
) -> EmbedCache:
    return fill_embed_cache(
        dataset,
        plan or plan_with(),
        load_encoder=encoder.load,
        encoder_fingerprint=fingerprint,
        dtype=dtype,
        batch_size=batch_size,
        context=context,
    )


def test_captions_get_the_system_prompt_and_the_empty_one_does_not(context: StepContext) -> None:
    encoder = FakeTextEncoder()
    index = read_embed_index(fill(open_folder(context, trigger_words="tok"), context, encoder))
    expected = [f"{SYSTEM} tok, caption of {letter}" for letter in "abc"]
    assert sorted(encoder.prompts) == ["", *expected]
    assert [sample.captions for sample in index.samples] == [(f"tok, caption of {letter}",) for letter in "abc"]
    assert (index.system_prompt, index.trigger_words) == (SYSTEM, "tok")
    for sample, prompt in zip(index.samples, expected, strict=True):
        assert torch.equal(load_embeds(index.path_of(sample)), fake_embeds(prompt))
    assert torch.equal(load_embeds(index.unconditional), fake_embeds(""))
    assert load_embeds(index.unconditional).shape == (1, 8)


def test_validation_prompts_are_found_as_typed(dataset: Dataset, context: StepContext) -> None:
    plan = plan_with(validation_prompts=("a fox", "blurry"), negative_prompt="blurry")
    index = read_embed_index(fill(dataset, context, FakeTextEncoder(), plan))
    assert list(index.prompts) == ["a fox", "blurry"]
    assert torch.equal(load_embeds(index.prompts["blurry"]), fake_embeds(f"{SYSTEM} blurry"))
    assert torch.equal(load_embeds(index.negative_path("blurry")), fake_embeds("blurry"))
    assert index.negative_path("") == index.unconditional
    assert "ugly" not in index.negative_prompts


def test_validation_prompts_leave_the_fingerprint_alone(dataset: Dataset, context: StepContext) -> None:
    first = fill(dataset, context, FakeTextEncoder())
    encoder = FakeTextEncoder()
    second = fill(dataset, context, encoder, plan_with(validation_prompts=("a fox",)))
    assert encoder.prompts == [f"{SYSTEM} a fox"]
    assert second.fingerprint == first.fingerprint
    assert second.index_path != first.index_path
    assert not read_embed_index(first).prompts


def test_unchanged_captions_need_no_encoder(dataset: Dataset, context: StepContext) -> None:
    encoder = FakeTextEncoder()
    first = fill(dataset, context, encoder)
    assert fill(dataset, context, encoder) == first
    assert (encoder.num_loads, len(encoder.prompts)) == (1, 4)


def test_a_changed_caption_redoes_exactly_one_entry(dataset: Dataset, context: StepContext, folder: Path) -> None:
    first, encoder = fill(dataset, context, FakeTextEncoder()), FakeTextEncoder()
    (folder / "b.txt").write_text("something else")
    second = fill(dataset, context, encoder)
    assert encoder.prompts == [f"{SYSTEM} something else"]
    assert second.fingerprint != first.fingerprint
    before, after = read_embed_index(first).samples, read_embed_index(second).samples
    assert [old.embeds != new.embeds for old, new in zip(before, after, strict=True)] == [False, True, False]


@pytest.mark.parametrize("change", [{"fingerprint": "gemma 2"}, {"dtype": torch.bfloat16}])
def test_another_encoder_or_dtype_redoes_everything(
    dataset: Dataset, context: StepContext, change: dict[str, Any]
) -> None:
    first, encoder = fill(dataset, context, FakeTextEncoder()), FakeTextEncoder()
    assert fill(dataset, context, encoder, **change).fingerprint != first.fingerprint
    assert len(encoder.prompts) == 4


def test_another_system_prompt_redoes_all_but_the_unconditional(dataset: Dataset, context: StepContext) -> None:
    fill(dataset, context, FakeTextEncoder())
    encoder = FakeTextEncoder()
    fill(dataset, context, encoder, plan_with(system_prompt="", build_prompt=lambda caption: caption))
    assert sorted(encoder.prompts) == [f"caption of {letter}" for letter in "abc"]


def test_an_interrupted_cache_goes_on_where_it_stopped(dataset: Dataset, tmp_path: Path) -> None:
    encoder = FakeTextEncoder()
    stopping = make_context(tmp_path, should_stop=lambda: len(encoder.prompts) == 2)
    with pytest.raises(StopTraining, match="cache_text_embeds stopped after 2 of 4"):
        fill(dataset, stopping, encoder)
    rest = FakeTextEncoder()
    fill(dataset, make_context(tmp_path), rest)
    assert len(rest.prompts) == 2


@pytest.mark.parametrize("max_batch_tokens", [1, 14, 1000])
@pytest.mark.parametrize("batch_size", [0, 1, 3])
def test_batches_change_nothing_that_is_cached(
    dataset: Dataset, context: StepContext, folder: Path, batch_size: int, max_batch_tokens: int
) -> None:
    for letter, text in zip("abc", ("one", "one two three four", "one two"), strict=True):
        (folder / f"{letter}.txt").write_text(text)
    first, encoder = fill(dataset, context, FakeTextEncoder()), FakeTextEncoder(max_batch_tokens=max_batch_tokens)
    kept = {s.id: load_embeds(read_embed_index(first).path_of(s)) for s in read_embed_index(first).samples}
    for path in (context.cache_dir / "text_embeds").glob("*.safetensors"):
        path.unlink()
    assert fill(dataset, context, encoder, batch_size=batch_size) == first
    for sample in read_embed_index(first).samples:
        assert torch.equal(load_embeds(read_embed_index(first).path_of(sample)), kept[sample.id])
    assert max(map(len, encoder.batches)) <= (batch_size or len(encoder.prompts))


def test_prompts_of_like_length_share_a_batch_up_to_a_number_of_tokens(
    dataset: Dataset, context: StepContext, folder: Path
) -> None:
    for letter, text in zip("abc", ("one", "one two three four", "one two"), strict=True):
        (folder / f"{letter}.txt").write_text(text)
    encoder = FakeTextEncoder(max_batch_tokens=13)
    fill(dataset, context, encoder, batch_size=0)
    short = ["", f"{SYSTEM} one"]  # 1 and 4 tokens; with the next one, three times 5 would be too many
    assert encoder.batches == [short, [f"{SYSTEM} one two"], [f"{SYSTEM} one two three four"]]


def test_equal_captions_are_encoded_once(dataset: Dataset, context: StepContext, folder: Path) -> None:
    for letter in "abc":
        (folder / f"{letter}.txt").write_text("the same")
    encoder = FakeTextEncoder()
    assert len(read_embed_index(fill(dataset, context, encoder)).samples) == 3
    assert encoder.prompts == ["", f"{SYSTEM} the same"]


def test_a_truncated_entry_is_redone(dataset: Dataset, context: StepContext) -> None:
    cache = fill(dataset, context, FakeTextEncoder())
    path = read_embed_index(cache).unconditional
    path.write_bytes(path.read_bytes()[:-1])
    encoder = FakeTextEncoder()
    assert fill(dataset, context, encoder) == cache
    assert encoder.prompts == [""]


def test_missing_captions_stop_before_the_encoder_is_loaded(
    dataset: Dataset, context: StepContext, folder: Path
) -> None:
    (folder / "a.txt").unlink()
    (folder / "c.txt").write_bytes(b"\xff\xfe")
    encoder = FakeTextEncoder()
    with pytest.raises(
        TrainerError, match=r"2 of 3 pictures have no caption.*1/a\.png: no text file.*1/c\.png: c\.txt"
    ):
        fill(dataset, context, encoder)
    assert encoder.num_loads == 0


def test_half_a_character_in_a_prompt_is_an_error(dataset: Dataset, context: StepContext) -> None:
    with pytest.raises(TrainerError, match=r"the prompt .*ud83e.* half of a character"):
        fill(dataset, context, FakeTextEncoder(), plan_with(validation_prompts=("\ud83e",)))


def test_embeds_that_are_not_finite_are_an_error(dataset: Dataset, context: StepContext) -> None:
    encoder = FakeTextEncoder()
    encoder.encode = lambda prompts: [torch.full((2, 8), torch.inf) for _ in prompts]  # type: ignore[method-assign]
    with pytest.raises(TrainerError, match="not finite for ''"):
        fill(dataset, context, encoder)


def test_differences_to_the_host_are_logged_each_time(
    dataset: Dataset, context: StepContext, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "b.txt").write_text("a (red:1.2) fox")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            fill(dataset, context, FakeTextEncoder())
        assert [record.getMessage() for record in caplog.records] == [f"'{SYSTEM} a (red:1.2) fox' has a weight"]


def test_progress_names_the_step(dataset: Dataset, tmp_path: Path) -> None:
    listener = Listener()
    fill(dataset, make_context(tmp_path, emit=listener), FakeTextEncoder())
    last = listener.events[-1]
    assert (last.run, last.data["step"], last.data["total"]) == ("cache_text_embeds", 4, 4)


def test_trigger_words_of_all_folders_are_kept_once(context: StepContext, dataset: Dataset) -> None:
    whole = dataset
    for words in ("tok, ", "tok", "other"):
        settings = DatasetFolderSettings(folder="set", resolution=64, trigger_words=words)
        whole = open_dataset(settings, earlier=whole, context=context)
    assert read_embed_index(fill(whole, context, FakeTextEncoder())).trigger_words == "tok, other"


def test_index_survives_the_round_trip(dataset: Dataset, context: StepContext) -> None:
    plan = plan_with(validation_prompts=("a \u72d0 \U0001f98a",), negative_prompt="x")
    index = read_embed_index(fill(dataset, context, FakeTextEncoder(), plan))
    assert EmbedIndex.from_json(index.to_json(), index.cache_dir) == index


def test_deleted_entries_say_what_to_do(dataset: Dataset, context: StepContext) -> None:
    cache = fill(dataset, context, FakeTextEncoder())
    read_embed_index(cache).unconditional.unlink()
    with pytest.raises(TrainerError, match=r"1 of 4 cache entries are gone.*queue Cache Text Embeds again"):
        read_embed_index(cache)


def indexes_of(latents: Dataset, embeds: Dataset, context: StepContext) -> tuple[LatentIndex, EmbedIndex]:
    latent_cache = fill_latent_cache(
        latents,
        load_encoder=FakeVAE().load,
        encoder_fingerprint="vae",
        dtype=torch.float32,
        batch_size=1,
        context=context,
    )
    return read_latent_index(latent_cache), read_embed_index(fill(embeds, context, FakeTextEncoder()))


def test_join_samples_pairs_latents_and_captions(context: StepContext) -> None:
    dataset = open_folder(context, repeats=2)
    latents, embeds = indexes_of(dataset, dataset, context)
    samples = join_samples(latents, embeds)
    assert [(s.id, s.file_name, s.caption, s.repeats) for s in samples] == [
        (f"1/{letter}.png", f"{letter}.png", f"caption of {letter}", 2) for letter in "abc"
    ]
    assert (samples[0].width, samples[0].height) == (64, 64)
    assert torch.equal(load_embeds(samples[1].embeds_path), fake_embeds(f"{SYSTEM} caption of b"))


def test_join_samples_refuses_different_datasets(context: StepContext, dataset: Dataset, tmp_path: Path) -> None:
    other = tmp_path / "input" / "other"
    write_pictures(other, {"a.png": (64, 64), "x.png": (64, 64)})
    with pytest.raises(TrainerError, match=r"different datasets: 1/b\.png and 2 more .*queue Cache Latents and"):
        join_samples(*indexes_of(dataset, open_folder(context, "other"), context))
    write_pictures(other, {"a.png": (64, 64), "b.png": (64, 64), "c.png": (64, 64)})
    (other / "x.png").unlink()
    noise_picture(64, 64, seed=99).save(other / "b.png")
    with pytest.raises(TrainerError, match=r"different pictures: 1/b\.png and 0 more differ"):
        join_samples(*indexes_of(dataset, open_folder(context, "other"), context))


def test_lines_and_shuffles_are_cached_and_drawn(folder: Path, context: StepContext) -> None:
    (folder / "a.txt").write_text("x, y, z\nwhole")
    dataset = open_folder(context, caption_lines="one_each", num_tag_shuffles=2, num_tags_kept=0)
    latents, embeds = indexes_of(dataset, dataset, context)
    samples = join_samples(latents, embeds)
    captions = embeds.samples[0].captions
    assert captions[0] == "x, y, z" and captions[-1] == "whole" and len(captions) in (3, 4)
    assert [len(sample.embeds_paths) for sample in samples] == [len(captions), 1, 1]
    for path, text in zip(samples[0].embeds_paths, captions, strict=True):
        assert torch.equal(load_embeds(path), fake_embeds(f"{SYSTEM} {text}"))
    samples[0].more_embeds_paths[-1].unlink()
    with pytest.raises(TrainerError, match="cache entries are gone"):
        indexes_of_cached(embeds)


def indexes_of_cached(embeds: EmbedIndex) -> EmbedIndex:
    """The index as it is read back from its file."""
    return read_embed_index(EmbedCache(index_path=str(write_index(embeds)), fingerprint=""))
