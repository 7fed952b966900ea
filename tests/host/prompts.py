"""Small prompts in the API's format, and the files they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..lumina2.tiny_files import write_all_in_one

TINY_BASE = "tiny.safetensors"
TINY_FOLDER = "pictures"
COLOURS = ("red", "green", "blue", "orange", "purple")


def write_tiny_files(base_dir: Path) -> None:
    """A random all-in-one model among the checkpoints, and captioned pictures in the input folder."""
    checkpoints = base_dir / "models" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_all_in_one(checkpoints / TINY_BASE)
    write_discs(base_dir / "input" / TINY_FOLDER, captions="a {colour} disc (drawn)")


def write_discs(folder: Path, captions: str, background: str = "white") -> None:
    """One captioned picture of a disc for each colour, which ``captions`` may name."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (64, 64 + 16 * (i % 2)), background)
        ImageDraw.Draw(picture).ellipse((8, 8, 40 + 4 * i, 40 + 4 * i), fill=colour)
        picture.save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(captions.format(colour=colour), "utf-8")


def training_prompt(**train: Any) -> dict[str, Any]:
    """Load, dataset, both caches, validation prompts and Train LoRA; keywords replace widgets of Train LoRA."""
    widgets = {
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "rank": 2,
        "alpha": 2.0,
        "optimizer": "adamw",
        "seed": 42,
        "run_name": "tiny",
        "caption_dropout": 0.1,
        "gradient_checkpointing": False,
    }
    return {
        "load": _node(
            "Lumina2Load",
            base=TINY_BASE,
            text_encoder="from base",
            vae="from base",
            precision="fp32",
            text_attention="comfyui",
        ),
        "dataset": _node(
            "Lumina2DatasetFolder",
            folder=TINY_FOLDER,
            resolution=64,
            aspect="buckets",
            caption_source="textfile",
            caption="",
            trigger_words="",
            repeats=1,
            include_subfolders=True,
        ),
        "latents": _node("Lumina2CacheLatents", model=["load", 0], dataset=["dataset", 0], batch_size=1),
        "embeds": _node(
            "Lumina2CacheTextEmbeds",
            model=["load", 0],
            dataset=["dataset", 0],
            system_prompt="none",
            custom_system_prompt="",
            batch_size=8,
            validation=["prompts", 0],
        ),
        "prompts": _node(
            "Lumina2ValidationPrompts",
            prompts="a red disc\na blue disc",
            negative_prompt="",
            width=64,
            height=64,
            num_inference_steps=2,
            guidance_scale=2.0,
            seed=1,
            schedule="comfyui",
            shift=6.0,
            every_num_steps=2,
        ),
        "train": _node(
            "Lumina2TrainLoRA",
            model=["load", 0],
            latents=["latents", 0],
            embeds=["embeds", 0],
            validation=["prompts", 0],
            **{**widgets, **train},
        ),
    }


def generation_nodes(*, seed: int = 1) -> dict[str, Any]:
    """ComfyUI's own nodes behind Lumina2 for Inference, drawing with the adapter of `train`."""
    return {
        "inference": _node("Lumina2Inference", model=["load", 0], adapter=["train", 0], strength=1.0),
        "positive": _node("CLIPTextEncode", clip=["inference", 1], text="a red disc"),
        "negative": _node("CLIPTextEncode", clip=["inference", 1], text=""),
        "latent": _node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sampler": _node(
            "KSampler",
            model=["inference", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=seed,
            steps=2,
            cfg=2.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "decode": _node("VAEDecode", samples=["sampler", 0], vae=["inference", 2]),
        "save": _node("SaveImage", images=["decode", 0], filename_prefix="after_training"),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
