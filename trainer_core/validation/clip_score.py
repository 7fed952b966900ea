"""How well pictures fit their prompts, by CLIP: 100 times the cosine of the two embeddings (arXiv:2104.08718).

torchmetrics 1.9 computes it; transformers is needed anyway.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ..context import StepContext
from ..errors import TrainerError

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

CLIP_DEVICES = ("cpu", "device")
"""Where pictures are scored."""
CONFIG_FILE = "config.json"
NEEDED_FILES = {
    "config": ((CONFIG_FILE,),),
    "weights": (("model.safetensors",),),
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "preprocessor": (("preprocessor_config.json",), ("processor_config.json",)),
}
"""Part -> the sets of files that it may be."""
CLIP_FILES = (
    *(file for options in NEEDED_FILES.values() for files in options for file in files),
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What is downloaded of a repository: nothing that could be code or a pickle, and none of its other weights."""


def find_clip_model(name: str, context: StepContext) -> Path:
    """The folder of a CLIP model, downloaded if the name is that of a repository.

    Args:
        name: A folder in models/text_encoders, models/diffusers or a dataset folder, or a repository on huggingface.co.
        context: Where folders are looked for.

    Raises:
        TrainerError: torchmetrics is missing, there is no such model, it is none of CLIP's, or it lacks files.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise TrainerError(
            f"clip_model is {name!r}, but the package torchmetrics is missing: run pip install torchmetrics, or leave"
            " clip_model empty"
        )
    folder = _find_folder(name, context)
    if folder is None:
        _check_config(name, _download(name, (CONFIG_FILE,)))  # before gigabytes of another model arrive
        folder = _download(name, CLIP_FILES)
    _check_config(name, folder)
    for part in NEEDED_FILES:
        _check_part(name, folder, part)
    return folder


def _check_part(name: str, folder: Path, part: str) -> None:
    options = NEEDED_FILES[part]
    if not any(all((folder / file).is_file() for file in files) for files in options):
        wanted = ", or ".join(" and ".join(files) for files in options)
        raise TrainerError(
            f"clip_model {name!r} holds no {part} ({wanted}): name a folder with a CLIP model in transformers' format"
        )


def _check_config(name: str, folder: Path) -> None:
    _check_part(name, folder, "config")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(f"clip_model {name!r} has a {CONFIG_FILE} that cannot be read: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clip":
        raise TrainerError(f"clip_model {name!r} is a model of the type {kind!r}: name one of the type 'clip'")


def _find_folder(name: str, context: StepContext) -> Path | None:
    """The folder of that name; None if there is none but the name can be a repository's."""
    try:
        return context.find_model(("text_encoders", "diffusers"), name, "clip_model")
    except TrainerError:
        pass
    try:
        return context.resolve_inside_roots(name, "clip_model")
    except TrainerError:
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII):
            return None
        raise


def _download(name: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TrainerError(
            f"clip_model {name!r} is neither a folder here nor can it be downloaded ({type(error).__name__}): put the"
            " model into models/text_encoders, or leave clip_model empty"
        ) from error


def clip_scores(paths: Sequence[Path], prompts: Sequence[str], folder: Path, device: torch.device) -> list[float]:
    """Score pictures; the model is loaded for it and freed.

    Args:
        paths: Picture files.
        prompts: One for each, as typed.
        folder: From `find_clip_model`.
        device: Where the model runs, in float32.

    Returns:
        One score for each picture, 0 to 100 and usually 20 to 35.

    Raises:
        TrainerError: The folder holds no CLIP model.
    """
    from torchmetrics.multimodal import CLIPScore

    metric = CLIPScore(model_name_or_path=lambda: _load(folder)).to(device)
    scores = []
    for path, prompt in zip(paths, prompts, strict=True):
        with torch.no_grad():
            metric.update(_read_pixels(path).to(device), prompt)
            scores.append(metric.compute().item())
        metric.reset()
    return scores


def _load(folder: Path) -> tuple[_PlainFeatures, _CuttingProcessor]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
        processor = CLIPProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: shapes that do not fit
        raise TrainerError(
            f"clip_model {folder.name} cannot be loaded ({str(error).splitlines()[0]}): it must hold config.json,"
            " model.safetensors, tokenizer and preprocessor of a CLIP model"
        ) from error
    return _PlainFeatures(model), _CuttingProcessor(processor, model.config.text_config.max_position_embeddings)


class _PlainFeatures(torch.nn.Module):
    """CLIP whose features are tensors: transformers 5 puts them into an object, which torchmetrics 1.9 cannot read."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return _as_tensor(self.model.get_image_features(pixel_values=pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return _as_tensor(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))


def _as_tensor(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output


class _CuttingProcessor:
    """Cuts long prompts in front of the end token, at which CLIP reads the text; torchmetrics 1.9 cuts that off too."""

    def __init__(self, processor: CLIPProcessor, max_tokens: int) -> None:
        self._processor = processor
        self._max_tokens = max_tokens

    def __call__(self, *, text: Any = None, images: Any = None, **arguments: Any) -> Any:
        if images is not None:
            return self._processor(images=images, return_tensors="pt")
        return self._processor(text=text, truncation=True, max_length=self._max_tokens, **arguments)


def _read_pixels(path: Path) -> Tensor:
    """[3, height, width] uint8."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]
