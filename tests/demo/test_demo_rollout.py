"""A LoRA for the demo model with rollout: it fits what it is trained on better than the base does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.cli import demo
from lumina2_trainer.trainer_core.context import DEMO_DIR, StepContext
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.stages import caches, train
from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder
from lumina2_trainer.trainer_core.training.rollout_settings import RolloutSettings

pytestmark = pytest.mark.train


def test_training_with_a_rollout_lowers_the_loss_on_fixed_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "NUM_DRAWS", 4)
    context = StepContext(
        output_dir=tmp_path, loras_dir=tmp_path / "loras", device=torch.device("cpu"), roots=(DEMO_DIR,)
    )
    model = find_model_files(LoadSettings(base="demo", precision="fp32"), context=context)
    dataset = read_dataset_folder(demo.demo_folder("held_out"), context=context).dataset
    trained = train.train_lora(
        replace(demo.TRAIN, steps=12, batch_size=4, learning_rate=2e-3, run_name="rolled"),
        model=model,
        latents=caches.cache_latents(caches.CacheLatentsSettings(), model=model, dataset=dataset, context=context),
        embeds=caches.cache_text_embeds(
            caches.CacheTextEmbedsSettings(system_prompt="none"), model=model, dataset=dataset, context=context
        ),
        adapter_settings=demo.LORA,
        rollout=RolloutSettings(probability=0.7, target="corrective"),
        context=context,
    )
    records = [json.loads(line) for line in (Path(trained.adapter.run_dir) / "log.jsonl").read_text().splitlines()]
    assert 0.5 < sum(record["num_rolled"] for record in records) / 48 < 0.9
    samples = demo.read_held_out(model, context)  # four pictures, those it was trained on
    before, after = demo.measure_adapter(model, samples, Path(trained.adapter.path), context)
    assert sum(after.values()) < 0.85 * sum(before.values())
