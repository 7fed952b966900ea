"""CLIP scores against a direct computation, on a tiny random CLIP."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.validation.clip_score import clip_scores, find_clip_model
from PIL import Image

from .tiny_clip import MAX_TOKENS, write_tiny_clip

CPU = torch.device("cpu")
PROMPTS = ["red", "a blue square", "green " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"{number}.png" for number in range(len(PROMPTS))]
    for path, size in zip(paths, [(32, 32, 3), (48, 64, 3), (80, 40, 3)], strict=True):
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(path)
    return paths


def direct_score(folder: Path, path: Path, prompt: str) -> float:
    """By CLIPModel's own forward pass: the cosine, without its learned scale."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    with Image.open(path) as image:
        inputs = processor(
            text=[prompt], images=[image.convert("RGB")], return_tensors="pt", truncation=True, max_length=MAX_TOKENS
        )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image[0, 0] / model.logit_scale.exp()
    return max(0.0, 100 * logits.item())


def test_scores_are_those_of_a_direct_computation(folder: Path, pictures: list[Path]) -> None:
    scores = clip_scores(pictures, PROMPTS, folder, CPU)
    expected = [direct_score(folder, path, prompt) for path, prompt in zip(pictures, PROMPTS, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-2)
    assert len(set(scores)) > 1 and max(scores) > 1


def test_long_prompts_are_read_to_their_end_token(folder: Path, pictures: list[Path]) -> None:
    [cut] = clip_scores(pictures[:1], ["abcdefghij" + "klm"], folder, CPU)
    [same] = clip_scores(pictures[:1], ["abcdefghij" + "xyz"], folder, CPU)
    [other] = clip_scores(pictures[:1], ["bbcdefghij" + "klm"], folder, CPU)
    assert cut == same != other


def context(tmp_path: Path, folder: Path) -> StepContext:
    return StepContext(
        output_dir=tmp_path,
        loras_dir=tmp_path,
        device=CPU,
        roots=(tmp_path,),
        model_dirs={"text_encoders": (folder.parent,)},
    )


def test_folder_is_found_among_models_and_others_are_refused(folder: Path, tmp_path: Path) -> None:
    assert find_clip_model("tiny", context(tmp_path, folder)) == folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainerError, match=r"clip_model 'empty' holds no config \(config\.json\)"):
        find_clip_model("empty", context(tmp_path, folder))
    with pytest.raises(TrainerError, match="clip_model 'nowhere' does not exist"):
        find_clip_model("nowhere", context(tmp_path, folder))


@pytest.mark.parametrize(
    ("part", "without"),
    [
        ("config", ["config.json"]),
        ("weights", ["model.safetensors"]),
        ("tokenizer", ["tokenizer.json", "merges.txt"]),
        ("preprocessor", ["processor_config.json"]),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_when_it_is_found(
    folder: Path, tmp_path: Path, part: str, without: list[str]
) -> None:
    shutil.copytree(folder, tmp_path / "partial", ignore=shutil.ignore_patterns(*without))
    with pytest.raises(TrainerError, match=f"clip_model 'partial' holds no {part} "):
        find_clip_model("partial", context(tmp_path, folder))


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(TrainerError, match="clip_model 'other' is a model of the type 'siglip': name one of the type"):
        find_clip_model("other", context(tmp_path, folder))


@pytest.fixture
def downloads(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Names of the files of each download from a hub with some/clip and some/siglip."""
    for kind in ("clip", "siglip"):
        shutil.copytree(folder, tmp_path / "hub" / "some" / kind)
        (tmp_path / "hub" / "some" / kind / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        (tmp_path / "hub" / "some" / kind / "more.safetensors").touch()
    done: list[set[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        files = {path.name for path in (tmp_path / "hub" / name).iterdir() if path.name in allow_patterns}
        (tmp_path / "cache" / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(tmp_path / "hub" / name / file, tmp_path / "cache" / name)
        done.append(files)
        return str(tmp_path / "cache" / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return done


def test_of_a_repository_only_what_scoring_needs_is_downloaded(
    folder: Path, tmp_path: Path, downloads: list[set[str]]
) -> None:
    assert find_clip_model("some/clip", context(tmp_path, folder)) == tmp_path / "cache" / "some" / "clip"
    assert downloads == [{"config.json"}, {path.name for path in folder.iterdir()}]


def test_of_another_model_only_the_config_is_downloaded(
    folder: Path, tmp_path: Path, downloads: list[set[str]]
) -> None:
    with pytest.raises(TrainerError, match="clip_model 'some/siglip' is a model of the type 'siglip'"):
        find_clip_model("some/siglip", context(tmp_path, folder))
    assert downloads == [{"config.json"}]


def test_repository_that_cannot_be_reached_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name: str, **_: Any) -> str:
        raise LocalEntryNotFoundError(f"{name} is not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(TrainerError, match="clip_model 'some/clip' is neither a folder here nor can it be downloaded"):
        find_clip_model("some/clip", context(tmp_path, folder))


def test_missing_package_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torchmetrics" else true_find(name, *more)
    )
    with pytest.raises(TrainerError, match="package torchmetrics is missing: run pip install torchmetrics"):
        find_clip_model("tiny", context(tmp_path, folder))


def test_a_damaged_folder_is_refused_in_one_sentence(pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(TrainerError, match="clip_model broken cannot be loaded"):
        clip_scores(pictures, PROMPTS, tmp_path / "broken", CPU)
