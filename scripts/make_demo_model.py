"""Make demo/lumina2-demo.safetensors, a real but tiny Lumina2, from random weights.

    make_demo_model.py material --work DIR --fluent DIR   draw the pictures, learn the vocabulary (any machine)
    make_demo_model.py vae --work DIR --seconds 170       train the autoencoder (a GPU, once)
    make_demo_model.py train --work DIR --seconds 520     train transformer and text encoder (a GPU; run again to go on)
    make_demo_model.py assemble --work DIR                write the all-in-one file (any machine)

--fluent is the folder `assets` of the npm package @lobehub/fluent-emoji-3d. Every command reads what the ones before it
left in --work, and writes to --out if that is given, else to --work.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch
from demo_model.assembly import write_demo_file
from demo_model.autoencoder import encode, make_autoencoder, train_autoencoder
from demo_model.batches import BatchPlanner
from demo_model.material import read_material, write_material
from demo_model.network import DemoNetwork
from demo_model.sheet import SHEET_CAPTIONS, recall, sample, write_sheet
from demo_model.state import load_state, save_state
from demo_model.styles import restyle
from demo_model.training import Trainer, TrainingSettings
from demo_model.vocabulary import load_vocabulary, train_vocabulary
from diffusers import AutoencoderKL
from lumina2_trainer.trainer_core.lumina2.encoders.prompts import SYSTEM_PROMPTS
from lumina2_trainer.trainer_core.lumina2.network.layout import patchify
from torch import Tensor

logger = logging.getLogger("make_demo_model")
SNAPSHOT_SECONDS = 240.0
EVALUATION_SECONDS = 20.0
"""Kept free at the end for drawing and saving."""


def make_material(arguments: argparse.Namespace) -> None:
    """Draw the pictures and learn the vocabulary."""
    material_path = arguments.out / "material.zip"
    write_material(material_path, arguments.fluent)
    captions = read_material(material_path).captions
    vocabulary = train_vocabulary(captions, [prompt for prompt in SYSTEM_PROMPTS.values() if prompt])
    (arguments.out / "spiece.model").write_bytes(vocabulary)


def make_vae(arguments: argparse.Namespace) -> None:
    """Train the autoencoder."""
    material = read_material(arguments.work / "material.zip")
    pictures_NCHW = torch.cat([to_device(material.noto_NHWC), to_device(material.fluent_NHWC)])
    decoder_seconds = arguments.seconds / 6
    vae = train_autoencoder(
        pictures_NCHW, len(material.captions), arguments.seconds - decoder_seconds, decoder_seconds, logger.info
    )
    save_state(arguments.out, "vae", vae.state_dict(), {})


def train_network(arguments: argparse.Namespace) -> None:
    """Train transformer and text encoder, from where the last run ended."""
    deadline = time.monotonic() + arguments.seconds - EVALUATION_SECONDS
    material = read_material(arguments.work / "material.zip")
    vocabulary = load_vocabulary((arguments.work / "spiece.model").read_bytes())
    vae = make_autoencoder().to(default_device())
    vae.load_state_dict(load_state(arguments.work, "vae")[0])
    noto_NCHW = to_device(material.noto_NHWC)
    latents_NCHW = encode(vae, noto_NCHW)
    variance_C, centre_C = torch.var_mean(latents_NCHW, (0, 2, 3))
    logger.info("latents: channel means to %.3f, variances %s", centre_C.abs().max(), variance_C.tolist())

    weights, progress = load_state(arguments.work, "network")
    settings = TrainingSettings(
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        total_seconds=arguments.total_seconds,
        seed=int(progress.get("runs", 0)),
        use_compile=not arguments.no_compile,
        use_cuda_graph=not arguments.no_cuda_graph,
    )
    torch.manual_seed(settings.seed)
    network, averaged = DemoNetwork().to(default_device()), DemoNetwork().to(default_device())
    if weights:
        network.load_state_dict(weights)
    styles = encode_styles(vae, noto_NCHW, arguments.num_styles)
    patches_NTC = torch.stack([patchify(z) for z in torch.cat([latents_NCHW, *styles])])
    planner = BatchPlanner(
        material.captions,
        vocabulary,
        batch_size=settings.batch_size,
        num_styles=arguments.num_styles,
        seed=settings.seed,
    )
    trainer = Trainer(network, patches_NTC, planner, settings, progress)

    indices = torch.randperm(len(material.captions), generator=torch.Generator().manual_seed(0))[: arguments.num_recall]
    captions = [material.captions[index] for index in indices.tolist()]
    while (left := deadline - time.monotonic()) > 0:
        trainer.train(min(left, SNAPSHOT_SECONDS), logger.info)
        averaged.load_state_dict(trainer.ema_state())
        share = recall(sample(averaged, vocabulary, captions), latents_NCHW, indices)
        logger.info("%.1f%% of %d captions drawn are nearest to their own picture", 100 * share, len(captions))
        drawn = sample(averaged, vocabulary, list(SHEET_CAPTIONS))
        write_sheet(arguments.out / "sheet.png", vae, drawn, list(SHEET_CAPTIONS))
        save_state(arguments.out, "network", trainer.ema_state(), trainer.progress())


def encode_styles(vae: AutoencoderKL, noto_NCHW: Tensor, num_styles: int) -> list[Tensor]:
    """Latents of restyled copies of all pictures, one tensor for each copy."""
    generator = torch.Generator(noto_NCHW.device).manual_seed(0)
    return [
        torch.cat([encode(vae, restyle(pictures, generator)) for pictures in noto_NCHW.split(64)])
        for _ in range(num_styles)
    ]


def assemble(arguments: argparse.Namespace) -> None:
    """Write the all-in-one file."""
    write_demo_file(
        arguments.out / "lumina2-demo.safetensors",
        load_state(arguments.work, "network")[0],
        load_state(arguments.work, "vae")[0],
        (arguments.work / "spiece.model").read_bytes(),
    )


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(pictures_NHWC: object) -> Tensor:
    """uint8 pictures as [N, 3, H, W] on the device."""
    return torch.as_tensor(pictures_NHWC).permute(0, 3, 1, 2).contiguous().to(default_device())


COMMANDS = {"material": make_material, "vae": make_vae, "train": train_network, "assemble": assemble}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fluent", type=Path)
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--total-seconds", type=float, default=1000.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-styles", type=int, default=0)
    parser.add_argument("--num-recall", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-cuda-graph", action="store_true")
    arguments = parser.parse_args()
    arguments.out = arguments.out or arguments.work
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    main()
