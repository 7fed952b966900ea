"""Drawing validation pictures to files."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..device import explained_out_of_memory
from ..errors import StopTraining
from ..files import replacing_folder
from ..lumina2.encoders.vae import VAE_SCALE, decode_latents, load_vae
from ..lumina2.encoders.vae_sizes import LATENT_CHANNELS
from ..lumina2.network.transformer import Lumina2Transformer
from ..lumina2.quant.precision import computation
from ..lumina2.sampling import initial_noise, sample_latents
from ..processes import ALONE, Processes
from .pictures import PlannedPicture, plan_pictures
from .settings import PictureSettings

PLAIN: Mapping[str, Callable[[], AbstractContextManager[None]]] = MappingProxyType({"": nullcontext})
"""The transformer's weights as they are."""
NOTHING: Mapping[str, Path] = MappingProxyType({})


@explained_out_of_memory("drawing pictures", ["lower width and height of the validation"])
def render_pictures(
    settings: PictureSettings,
    *,
    transformer: Lumina2Transformer,
    vae_path: Path,
    prompt_embeds: Mapping[str, Tensor],
    negative_embeds: Tensor,
    precision: str,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    weights: Mapping[str, Callable[[], AbstractContextManager[None]]] = PLAIN,
    beside: Mapping[str, Path] = NOTHING,
    processes: Processes = ALONE,
) -> tuple[Path, ...]:
    """Draw every prompt in every size with the same seed.

    Args:
        settings: Prompts, sizes and sampler.
        transformer: With or without an adapter.
        vae_path: Loaded for the decoding and freed.
        prompt_embeds: [tokens, width] by prompt, see `load_prompt_embeds`.
        negative_embeds: [tokens, width].
        precision: Key of PRECISIONS.
        folder: `00.png`, `01.png`, ... are written there, with more in their names where a picture's stem has it.
        should_stop: Asked before each sampling step.
        weights: What is put into the transformer, by what is added to the names of the pictures drawn with it.
        beside: Folders of the same pictures that were drawn before, by what is added to their names.
        processes: Who share the pictures among them; the folder is the same for all.

    Returns:
        The files, in the order of the pictures, of each those with all weights and then those from beside.

    Raises:
        StopTraining: should_stop said so.
    """
    device = transformer.x_embedder.weight.device
    pictures = plan_pictures(settings)
    was_training = transformer.training
    transformer.eval()
    latents: dict[str, dict[int, Tensor]] = {}
    turns = itertools.cycle(range(processes.count))

    def stop_if_asked() -> None:
        if should_stop():
            raise StopTraining

    try:
        for suffix, in_use in weights.items():
            with in_use():
                latents[suffix] = {
                    number: sample_latents(
                        transformer,
                        prompt_embeds[picture.prompt],
                        negative_embeds,
                        _start(settings.seed, picture),
                        schedule=settings.schedule,
                        num_inference_steps=settings.num_inference_steps,
                        guidance_scale=1.0 if picture.is_unconditional else settings.guidance_scale,
                        shift=settings.shift,
                        guidance_rescale=settings.guidance_rescale,
                        autocast=lambda: computation(precision, device),
                        before_step=stop_if_asked,
                    )
                    for number, picture in enumerate(pictures)
                    if next(turns) == processes.index
                }
    finally:
        transformer.train(was_training)
    # There may be an earlier drawing of the same step, of other prompts.
    with replacing_folder(folder) if processes.is_main else nullcontext(folder) as own_folder:
        temporary = processes.from_main(lambda: own_folder)
        with processes.failing_together():
            _decode_to_files(pictures, latents, vae_path, device, temporary)
        for suffix, earlier in beside.items() if processes.is_main else ():
            for picture in pictures:
                shutil.copyfile(earlier / f"{picture.stem}.png", temporary / f"{picture.stem}{suffix}.png")
    processes.wait()  # until the folder is in its place
    return tuple(folder / f"{picture.stem}{suffix}.png" for picture in pictures for suffix in (*weights, *beside))


def _start(seed: int, picture: PlannedPicture) -> Tensor:
    return initial_noise(seed, LATENT_CHANNELS, picture.height // VAE_SCALE, picture.width // VAE_SCALE)


def _decode_to_files(
    pictures: Sequence[PlannedPicture],
    latents: Mapping[str, Mapping[int, Tensor]],
    vae_path: Path,
    device: torch.device,
    folder: Path,
) -> None:
    vae = load_vae(vae_path, device=device, dtype=torch.float32)
    for number, picture in enumerate(pictures):
        for suffix, drawn in latents.items():
            if number not in drawn:
                continue
            with torch.no_grad():
                pixels_13HW = decode_latents(vae, drawn[number][None])
            about = PngInfo()
            about.add_itxt("prompt", picture.prompt)
            to_image(pixels_13HW[0]).save(folder / f"{picture.stem}{suffix}.png", pnginfo=about)


def to_image(pixels: Tensor) -> Image.Image:
    """[3, height, width] in [0, 1] to an 8-bit picture, truncated as ComfyUI's Save Image does."""
    array = (pixels.permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()  # [3, H, W] -> [H, W, 3]
    return Image.fromarray(array)
