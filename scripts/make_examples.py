"""Writes the workflows of example_workflows that are made of this pack's nodes alone.

    .venv/bin/python scripts/make_examples.py

Every example runs as it is, on the demo model and its pictures. Notes say what to change for a real model. Take the
thumbnails with scripts/screenshot_canvas.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumina2_trainer.trainer_core.adapters.lora import LoRASettings
from lumina2_trainer.trainer_core.adapters.lycoris_settings import LyCORISSettings
from lumina2_trainer.trainer_core.cli import demo
from lumina2_trainer.trainer_core.data.folder import DEMO_FOLDER, DatasetFolderSettings
from lumina2_trainer.trainer_core.files import write_json_atomically
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.run.job import TrainFullSettings, TrainLoRASettings
from lumina2_trainer.trainer_core.stages import caches
from lumina2_trainer.trainer_core.stages.compare import CompareSettings
from lumina2_trainer.trainer_core.stages.save import SaveAdapterSettings, SaveModelSettings
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from lumina2_trainer.trainer_core.validation.settings import ValidationSettings
from lumina2_trainer.trainer_core.workflow.canvas import Graph, graph_content

FOLDER = Path(__file__).parents[1] / "example_workflows"
TRIGGER = demo.TRIGGER_WORDS
DEMO_PICTURES = DatasetFolderSettings(folder=DEMO_FOLDER, resolution=demo.RESOLUTION, trigger_words=TRIGGER)
DEMO_PROMPTS = ValidationSettings(
    prompts="\n".join(f"{TRIGGER}, {subject}" for subject in ("cat face", "rocket", "dog face", "tangerine")),
    width=demo.RESOLUTION,
    height=demo.RESOLUTION,
    num_inference_steps=12,
    every_num_steps=6,
)
FILES = """## With your own pictures
1. Download `lumina_2.safetensors` (10.6 GB, the all-in-one of Comfy-Org/Lumina_Image_2.0_Repackaged on Hugging Face)
   into `models/checkpoints`, and choose it in **Load Lumina2** with precision {precision}.
2. Put a folder with pictures and `.txt` captions into ComfyUI's `input` folder, and write its name in **Dataset
   Folder**. Set the resolution to 1024.
3. **Validation Prompts**: your own, at 1024 x 1024. **Cache Text Embeds**: system prompt `superior`.
4. **{train}**: {numbers}, and a new run name."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One workflow."""

    title: str
    text: str
    """Markdown under the title: what it shows and what to look at."""
    numbers: str
    """First values for a real model."""
    run_name: str
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the Train node's settings."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """More settings nodes, by part; they replace the usual ones."""
    datasets: tuple[DatasetFolderSettings, ...] = (DEMO_PICTURES,)
    precision: str = "fp32"
    is_full: bool = False


def graph_of(example: Example) -> Graph:
    """Its nodes."""
    small = {"steps": 12, "batch_size": 8, "run_name": example.run_name}
    if example.is_full:
        train: Any = TrainFullSettings(**{**small, "learning_rate": 2e-4, **example.train})
        save: Any = SaveModelSettings(name=example.run_name)
    else:
        train = TrainLoRASettings(**{**small, "learning_rate": 1e-3, **example.train})
        save = SaveAdapterSettings(name=example.run_name)
    settings = {
        "model": LoadSettings(base="demo", precision=example.precision),
        "validation": DEMO_PROMPTS,
        "latents": caches.CacheLatentsSettings(),
        "embeds": caches.CacheTextEmbedsSettings(system_prompt="none"),
        **example.parts,
        "train": train,
        "save": save,
    }
    return Graph(settings=settings, datasets=example.datasets, is_full=example.is_full)


def note_of(example: Example) -> str:
    """Markdown of the note at the left."""
    train = "Train Full Model" if example.is_full else "Train LoRA"
    precision = {"fp32": "`bf16`", "bf16": "`bf16`"}.get(example.precision, f"`{example.precision}`")
    files = FILES.format(precision=precision, train=train, numbers=example.numbers)
    return f"# {example.title}\n\nPress **Run**: it trains on the demo as it is.\n\n{example.text}\n\n{files}\n"


EXAMPLES: dict[str, Example] = {
    "character_lora": Example(
        title="A character",
        text=(
            "A subject is learned from 10 to 30 pictures of it in different places and poses. **trigger_words** of"
            " Dataset"
            " Folder is its name: a word the model does not know. Caption what may change (clothes, place, light), not"
            " what makes the character.\n\n**caption_dropout** stays low, and attention alone is enough: see **LoRA"
            " Settings**. In the pictures look whether the character is there in new places; if it brings its old"
            " background along, take an earlier checkpoint."
        ),
        numbers="800 to 1500 steps, batch size 2, learning rate 1e-4, rank 16",
        run_name="demo_character",
        train={"caption_dropout": 0.05},
        parts={
            "lora": LoRASettings(targets="attention"),
            "checkpoints": CheckpointSettings(checkpoint_step_interval=6),
        },
    ),
    "style_lora": Example(
        title="A style",
        text=(
            "A style is learned from 30 to 200 pictures of many subjects. Caption what is on them, never the style:"
            " that is"
            " what **trigger_words** stands for.\n\nThe MLPs are trained too (**LoRA Settings**), a little dropout"
            " slows"
            " overfitting, the learning rate falls (**Optimizer**), and the running average of the weights is drawn"
            " beside the weights themselves (**Checkpoints and EMA**): take the one that looks better in Save Adapter."
        ),
        numbers="1500 to 3000 steps, batch size 4, learning rate 1e-4, rank 32",
        run_name="demo_style",
        train={"caption_dropout": 0.1},
        parts={
            "lora": LoRASettings(targets="attention_mlp", dropout=0.1),
            "optimizer": OptimizerSettings(lr_schedule="cosine", num_warmup_steps=5),
            "checkpoints": CheckpointSettings(use_ema=True, ema_decay=0.95),
        },
    ),
    "lycoris_lokr": Example(
        title="LyCORIS: a LoKr",
        text=(
            "**LyCORIS Settings** takes the place of LoRA Settings: LoKr, LoHa, LoCon, DyLoRA, GLoRA, OFT, BOFT and"
            " full"
            " differences. It needs `pip install lycoris-lora` in ComfyUI's Python.\n\nA LoKr with a small factor"
            " learns"
            " like full training from a file of a few MB; raise **factor** for smaller files. Rank and alpha play no"
            " role while **full_matrix** is on."
        ),
        numbers="1000 to 3000 steps, batch size 2, learning rate 3e-4",
        run_name="demo_lokr",
        parts={"lycoris": LyCORISSettings(factor=4, targets="attention_mlp")},
    ),
    "full_fine_tune": Example(
        title="Full fine-tuning",
        text=(
            "**Train Full Model** changes every weight: for thousands of pictures, or a new base. It keeps bf16"
            " weights and"
            " 8-bit optimizer state: 11 GiB of GPU memory at 1024 x 1024, 6.2 with optimizer_state `host` in"
            " Optimizer.\n\n**Save Model** writes one file for Load Checkpoint. A checkpoint takes 11 GB of disk."
        ),
        numbers="5000 steps and more, batch size as large as fits, learning rate 1e-5",
        run_name="demo_full",
        precision="bf16",
        is_full=True,
        parts={
            "optimizer": OptimizerSettings(lr_schedule="cosine", num_warmup_steps=5),
            "checkpoints": CheckpointSettings(checkpoint_step_interval=0, num_checkpoints_kept=1),
        },
    ),
    "resume_training": Example(
        title="Stop and resume",
        text=(
            "Press **Run**, then **Stop** on Train LoRA after some steps (or Cancel, or close ComfyUI): the work is"
            " kept."
            " Press **Run** again: it goes on exactly where it was, bit for bit, and the panel shows the whole"
            " curve.\n\n"
            "**Checkpoints and EMA** says how often a checkpoint is written in between, for power cuts. *Save now*"
            " writes"
            " one at once. To train a finished LoRA further, put its file into *start_from* of LoRA Settings."
        ),
        numbers="as many steps as you like: you can stop any time",
        run_name="demo_resume",
        parts={"checkpoints": CheckpointSettings(checkpoint_step_interval=5, num_checkpoints_kept=2)},
    ),
    "compare_checkpoints": Example(
        title="Compare checkpoints",
        text=(
            "**Compare Checkpoints** draws every prompt with each checkpoint at each strength, in one labelled grid."
            " Go from"
            " left to right until the style is there; where pictures get stiff or all alike, it has learned too"
            " much.\n\n"
            "**Checkpoints and EMA** decides how many there are to choose from."
        ),
        numbers="2000 steps, a checkpoint every 250, eight kept",
        run_name="demo_compare",
        parts={
            "checkpoints": CheckpointSettings(checkpoint_step_interval=6, num_checkpoints_kept=8),
            "compare": CompareSettings(
                prompts="\n".join(f"{TRIGGER}, {subject}" for subject in ("cat face", "rocket")),
                width=demo.RESOLUTION,
                height=demo.RESOLUTION,
                num_inference_steps=12,
                strengths="0, 0.6, 1",
            ),
        },
    ),
    "regularisation_set": Example(
        title="A regularisation set",
        text=(
            "The second **Dataset Folder** has *is_regularisation* on: for its pictures the target is what the base"
            " model"
            " itself predicts, so that the LoRA learns the new subject and leaves its class as it was. No trigger words"
            " there.\n\nGive the second folder as many pictures as the first, of the same class (other people, other"
            " dogs), made by the base or by a camera; *repeats* balances them."
        ),
        numbers="1000 to 2000 steps, batch size 2, learning rate 1e-4, rank 16",
        run_name="demo_regularised",
        datasets=(
            DEMO_PICTURES,
            DatasetFolderSettings(folder="held_out", resolution=demo.RESOLUTION, is_regularisation=True),
        ),
    ),
    "lora_on_12_gb": Example(
        title="A LoRA on a 12 GB card",
        text=(
            "Nothing special is needed: with *memory* `auto` training takes what is free, and the log and the panel say"
            " what it does to fit. At 1024 x 1024 and batch size 1 the bf16 model takes 6 GiB with recomputation, the"
            " `fp8` one (RTX 40 and 50; `int8` on RTX 30) 3.8, so that batch size 4 fits too: 7 GiB.\n\nIf something"
            " else"
            " needs the card, give *memory* a number: down to 2 GiB blocks move to the computer's memory and back."
        ),
        numbers="1000 to 3000 steps, batch size 1 to 4, learning rate 1e-4, rank 16, memory `auto` or 10",
        run_name="demo_12_gb",
        precision="fp8",
        train={"gradient_checkpointing": True},
    ),
}
"""By the name of the file."""


def main() -> None:
    for name, example in EXAMPLES.items():
        write_json_atomically(FOLDER / f"{name}.json", graph_content(graph_of(example), note_of(example)))
        print(name)


if __name__ == "__main__":
    main()
