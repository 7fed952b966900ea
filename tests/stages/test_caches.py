from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.cache import (
    join_samples,
    load_embeds,
    load_latents,
    read_embed_index,
    read_latent_index,
)
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.data.images import decode_picture, fit_to_bucket, to_picture_tensor
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from lumina2_trainer.trainer_core.lumina2.encoders import text_encoder as text_encoder_module
from lumina2_trainer.trainer_core.lumina2.encoders import vae as vae_module
from lumina2_trainer.trainer_core.lumina2.encoders.prompts import SYSTEM_PROMPTS, build_prompt
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import load_text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.vae import encode_pixels, load_vae
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings
from lumina2_trainer.trainer_core.stages import caches, dataset
from lumina2_trainer.trainer_core.stages.caches import encode_prompts
from lumina2_trainer.trainer_core.validation.settings import ValidationSettings

from ..data.sample_files import make_context, write_pictures
from ..lumina2.tiny_files import write_all_in_one

CPU = torch.device("cpu")
PROMPT = "a red (wooden) chair"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all_in_one(tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors")


@pytest.fixture
def context(tmp_path: Path, model_path: Path) -> StepContext:
    write_pictures(tmp_path / "input" / "set", {"a.png": (90, 70), "b.jpg": (40, 100), "c.webp": (64, 64)})
    return make_context(tmp_path, model_dirs={"checkpoints": (model_path.parent,)})


def run_steps(context: StepContext, precision: str) -> dict[str, Any]:
    model = find_model_files(LoadSettings(base="tiny.safetensors", precision=precision), context=context)
    report = dataset.read_dataset_folder(DatasetFolderSettings(folder="set", resolution=64), context=context)
    validation = ValidationSettings(prompts=PROMPT, negative_prompt="blurry", width=64, height=64)
    return {
        "model": model,
        "report": report,
        "latents": caches.cache_latents(
            caches.CacheLatentsSettings(batch_size=2), model=model, dataset=report.dataset, context=context
        ),
        "embeds": caches.cache_text_embeds(
            caches.CacheTextEmbedsSettings(system_prompt="anime"),
            model=model,
            dataset=report.dataset,
            validation=validation,
            context=context,
        ),
    }


def test_caches_hold_what_vae_and_text_encoder_give(context: StepContext, model_path: Path) -> None:
    made = run_steps(context, "fp32")
    embeds = read_embed_index(made["embeds"])
    samples = join_samples(read_latent_index(made["latents"]), embeds)
    pictures = scan_dataset(made["report"].dataset, context).pictures
    vae = load_vae(model_path, device=CPU, dtype=torch.float32)
    encoder = load_text_encoder(model_path, device=CPU, dtype=torch.float32, text_attention="comfyui")
    for sample, picture in zip(samples, pictures, strict=True):
        image = fit_to_bucket(decode_picture(picture.path.read_bytes()).image, picture.bucket)
        expected = encode_pixels(vae, to_picture_tensor(image)[None] / 127.5 - 1)[0]
        torch.testing.assert_close(load_latents(sample.latents_path), expected, rtol=1e-4, atol=1e-4)
        (expected,) = encoder.encode([build_prompt(sample.caption, SYSTEM_PROMPTS["anime"])])
        torch.testing.assert_close(load_embeds(sample.embeds_path), expected, rtol=1e-4, atol=1e-4)
    for path, prompt in (
        (embeds.unconditional, ""),
        (embeds.negative_path("blurry"), "blurry"),
        (embeds.prompts[PROMPT], build_prompt(PROMPT, SYSTEM_PROMPTS["anime"])),
    ):
        torch.testing.assert_close(load_embeds(path), encoder.encode([prompt])[0], rtol=1e-4, atol=1e-4)


def test_repeated_steps_load_no_model(context: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_steps(context, "bf16")

    def fail(*args: object, **settings: object) -> None:
        raise AssertionError("weights are read again")

    for module in (vae_module, text_encoder_module):
        monkeypatch.setattr(module, "fill_parameters", fail)
    second = run_steps(context, "bf16")
    assert (second["latents"], second["embeds"]) == (first["latents"], first["embeds"])
    assert second["report"] == first["report"]


def test_precisions_have_caches_of_their_own(context: StepContext) -> None:
    exact, rounded = run_steps(context, "fp32"), run_steps(context, "bf16")
    assert exact["latents"].fingerprint != rounded["latents"].fingerprint
    first, second = (read_latent_index(made["latents"]) for made in (exact, rounded))
    expected = load_latents(first.path_of(first.samples[0]))
    assert torch.equal(load_latents(second.path_of(second.samples[0])), expected.bfloat16().float())


def test_prompts_are_encoded_without_a_dataset(context: StepContext) -> None:
    model = find_model_files(LoadSettings(base="tiny.safetensors", precision="fp32"), context=context)
    index = read_embed_index(encode_prompts(model, system_prompt="", context=context, validation_prompts=("a fox",)))
    assert not index.samples
    assert list(index.prompts) == ["a fox"]
