"""What a trained file says of itself, in the fields that LoRA and model managers read.

No paths, captions or names of people: the file is shared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

SYSTEM_PROMPT = "lumina2_trainer.system_prompt"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts of the run that made it."""

    title: str
    base_name: str
    base_fingerprint: str
    trigger_words: str
    system_prompt: str
    text_attention: str
    resolution: str
    """Width x height in pixels of the largest bucket, such as 1024x1024."""
    step: int
    num_steps: int
    num_images: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    optimizer: str
    lr_schedule: str
    seed: int
    date: str
    """ISO 8601, UTC."""


LORA_MODULE = {"ss_network_module": "networks.lora_lumina"}


def _lycoris_module(kind: str) -> dict[str, str]:
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": kind})}


def adapter_metadata(facts: RunFacts, *, kind: str, rank: int, alpha: float, targets: str) -> dict[str, str]:
    """Safetensors metadata: `modelspec.*` (Stability's ModelSpec 1.0.1), `ss_*` (sd-scripts' names), and our own.

    alpha / rank is folded into the weights, so a reader must not scale again: the file has no `.alpha` tensors, and
    `ss_network_alpha` equals the rank.
    """
    return {
        **_run_metadata(facts, f"lumina-2/{'lora' if kind == 'lora' else 'lycoris'}"),
        **(LORA_MODULE if kind == "lora" else _lycoris_module(kind)),
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "lumina2_trainer.adapter": kind,
        "lumina2_trainer.rank": str(rank),
        "lumina2_trainer.alpha": str(alpha),
        "lumina2_trainer.targets": targets,
    }


def model_metadata(facts: RunFacts) -> dict[str, str]:
    """The same of a model whose own weights were trained."""
    return _run_metadata(facts, "lumina-2")


def _run_metadata(facts: RunFacts, architecture: str) -> dict[str, str]:
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Alpha-VLLM/Lumina-Image-2.0",
        "modelspec.title": facts.title,
        "modelspec.date": facts.date,
        "modelspec.resolution": facts.resolution,
        "modelspec.prediction_type": "flow_matching",
        "modelspec.trigger_phrase": facts.trigger_words,
        "modelspec.usage_hint": _usage_hint(facts),
        "ss_base_model_version": "lumina2",
        "ss_sd_model_name": facts.base_name,
        "ss_resolution": facts.resolution,
        "ss_num_train_images": str(facts.num_images),
        "ss_steps": str(facts.step),
        "ss_max_train_steps": str(facts.num_steps),
        "ss_total_batch_size": str(facts.batch_size * facts.gradient_accumulation_steps),
        "ss_gradient_accumulation_steps": str(facts.gradient_accumulation_steps),
        "ss_learning_rate": str(facts.learning_rate),
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.lr_schedule,
        "ss_seed": str(facts.seed),
        "ss_output_name": facts.title,
        SYSTEM_PROMPT: facts.system_prompt,
        "lumina2_trainer.trigger_words": facts.trigger_words,
        "lumina2_trainer.text_attention": facts.text_attention,
        "lumina2_trainer.base_fingerprint": facts.base_fingerprint,
    }


def _usage_hint(facts: RunFacts) -> str:
    hints = []
    if facts.trigger_words:
        hints.append(f"Trigger words: {facts.trigger_words}.")
    if facts.system_prompt:
        hints.append(f"System prompt: {json.dumps(facts.system_prompt)}, then <Prompt Start>, then the prompt.")
    return " ".join(hints)


def system_prompt_of(metadata: Mapping[str, str]) -> str | None:
    """The system prompt a file of this project was trained with; None for files from elsewhere."""
    return metadata.get(SYSTEM_PROMPT)
