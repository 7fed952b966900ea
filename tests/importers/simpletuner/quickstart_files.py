"""Configurations in SimpleTuner's format: the keys and values of its Lumina2 quickstart, and smaller ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lumina2_trainer.trainer_core.importers.simpletuner.command import read_translation
from lumina2_trainer.trainer_core.importers.simpletuner.translate import Translation

MODEL = {"model_family": "lumina2", "model_type": "lora"}
LENGTH = {"max_train_steps": 400000, "num_train_epochs": 0, "train_batch_size": 4, "seed": 42}
LEARNING = {"learning_rate": 1e-4, "lr_scheduler": "constant", "optimizer": "adamw_bf16", "use_ema": True}
NETWORK = {
    "base_model_precision": "int8-torchao",
    "quantize_via": "cpu",
    "gradient_checkpointing": True,
    "flow_schedule_auto_shift": True,
    "lora_type": "standard",
    "lora_rank": 16,
    "lora_alpha": 16,
}
DATA = {
    "data_backend_config": "config/lumina2/multidatabackend.json",
    "disable_bucket_pruning": True,
    "vae_batch_size": 1,
}
RECORDS = {
    "output_dir": "output/lumina2",
    "checkpoint_step_interval": 50,
    "eval_steps_interval": 50,
    "evaluation_type": "clip",
    "report_to": "wandb",
    "tracker_project_name": "lumina2-training",
    "tracker_run_name": "lumina2-lora",
    "hub_model_id": "lumina2-lora",
    "push_to_hub": True,
    "push_checkpoints_to_hub": True,
}
VALIDATION = {
    "validation_prompt": "a cat that looks out of a window",
    "validation_negative_prompt": "blurry, cut off",
    "validation_prompt_library": False,
    "validation_disable_unconditional": True,
    "validation_guidance": 4.0,
    "validation_guidance_rescale": 0.0,
    "validation_num_inference_steps": 40,
    "validation_resolution": "1024x1024",
    "validation_seed": 42,
    "validation_step_interval": 50,
}
QUICKSTART: Mapping[str, Any] = {**MODEL, **LENGTH, **LEARNING, **NETWORK, **DATA, **RECORDS, **VALIDATION}
PICTURES: Mapping[str, Any] = {
    "id": "lumina2-training",
    "type": "local",
    "instance_data_dir": "/datasets/training",
    "caption_strategy": "textfile",
    "metadata_backend": "discovery",
    "cache_dir_vae": "cache/vae/lumina2/training",
    "crop": True,
    "crop_aspect": "square",
    "crop_style": "center",
    "resolution": 1024,
    "resolution_type": "pixel_area",
    "minimum_image_size": 512,
    "maximum_image_size": 2048,
    "target_downsample_size": 1024,
}
TEXT_EMBEDS: Mapping[str, Any] = {
    "id": "text-embeds",
    "type": "local",
    "dataset_type": "text_embeds",
    "default": True,
    "cache_dir": "cache/text/lumina2",
    "disabled": False,
    "write_batch_size": 128,
}
LOKR: Mapping[str, Any] = {
    "algo": "lokr",
    "multiplier": 1.0,
    "linear_dim": 10000,
    "linear_alpha": 1,
    "factor": 16,
    "full_matrix": True,
    "apply_preset": {
        "target_module": ["Attention", "FeedForward"],
        "module_algo_map": {"Attention": {"factor": 16}, "FeedForward": {"factor": 8}},
    },
}


def write_files(
    folder: Path,
    config: Mapping[str, Any] = QUICKSTART,
    backends: Sequence[Mapping[str, Any]] = (PICTURES, TEXT_EMBEDS),
    lycoris: Mapping[str, Any] | None = None,
) -> Path:
    """Write the files as SimpleTuner finds them; returns the path of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "multidatabackend.json").write_text(json.dumps(backends), encoding="utf-8")
    if lycoris is not None:
        (folder / "lycoris_config.json").write_text(json.dumps(lycoris), encoding="utf-8")
    return folder / "config.json"


def translate_files(folder: Path, *arguments: Any, **keywords: Any) -> Translation:
    """Write the files and read them; arguments are those of `write_files`."""
    return read_translation(write_files(folder, *arguments, **keywords))


def minimal(**options: Any) -> dict[str, Any]:
    """The least that is a configuration, and more."""
    return {**MODEL, "data_backend_config": "multidatabackend.json", **options}
