"""Caption Table's step: what counts, with a tokenizer and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.data import cache_text_embeds
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.encoders.fitting_text_encoder import FittingTextEncoder
from lumina2_trainer.trainer_core.lumina2.encoders.prompts import SYSTEM_PROMPTS
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.stages import caption_table
from lumina2_trainer.trainer_core.stages.caches import CacheTextEmbedsSettings, encode_prompts
from lumina2_trainer.trainer_core.stages.caption_table import CaptionTableSettings, read_caption_table
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

from ..data.sample_files import make_context, open_folder, write_pictures
from ..lumina2.tiny_files import write_all_in_one


@pytest.mark.parametrize("system_prompt", ["none", "anime"])
def test_tokens_are_those_that_the_text_cache_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_prompt: str
) -> None:
    write_pictures(tmp_path / "input" / "set", {"a.png": (64, 64), "b.png": (64, 64)})
    (tmp_path / "input" / "set" / "b.txt").write_text("a \\(drawn\\) chair " * 60)
    write_all_in_one(tmp_path / "tiny.safetensors")
    context = make_context(tmp_path, model_dirs={"checkpoints": (tmp_path,)})
    dataset = open_folder(context)
    model = find_model_files(LoadSettings(base="tiny.safetensors", precision="fp32"), context=context)
    settings = CaptionTableSettings(system_prompt=system_prompt)
    rows = read_caption_table(settings, dataset=dataset, model=model, context=context).view["rows"]

    counts: dict[str, int] = {}
    count_tokens = FittingTextEncoder.count_tokens

    def remember(encoder: FittingTextEncoder, prompt: str) -> int:
        counts[prompt] = count_tokens(encoder, prompt)
        return counts[prompt]

    monkeypatch.setattr(FittingTextEncoder, "count_tokens", remember)
    encode_prompts(
        model,
        system_prompt=SYSTEM_PROMPTS[system_prompt],
        dataset=dataset,
        validation_prompts=(),
        negative_prompt="",
        batch_size=1,
        context=context,
    )
    del counts[cache_text_embeds.UNCONDITIONAL]
    assert sorted(row["length"] for row in rows) == sorted(counts.values())
    assert [row["marks"] for row in rows] == [[], ["long"]]


def test_dataset_passes_as_it_came_and_text_has_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_table, "MAX_SHOWN_ROWS", 2)
    write_pictures(tmp_path / "input" / "set", {f"{i}.png": (64, 64) for i in range(3)})
    context = make_context(tmp_path)
    dataset = open_folder(context, num_tag_shuffles=2)
    table = read_caption_table(CaptionTableSettings(), dataset=dataset, context=context)
    assert table.dataset is dataset
    assert (table.view["total"], len(table.view["rows"]), table.view["unit"]) == (3, 2, "characters")
    assert [line.split("\t")[0] for line in table.text.splitlines()] == ["picture", "1/0.png", "1/1.png", "1/2.png"]


def test_settings_are_those_of_cache_text_embeds() -> None:
    theirs = {field.name: field for field in describe_settings(CacheTextEmbedsSettings)}
    ours = describe_settings(NODE_STEPS["Lumina2CaptionTable"].settings)
    assert ours == [theirs["system_prompt"], theirs["custom_system_prompt"]]
    with pytest.raises(TrainerError, match="system_prompt is 'loud': choose one of superior"):
        CaptionTableSettings(system_prompt="loud")
