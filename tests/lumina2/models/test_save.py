"""A model saved in each layout holds the same weights and opens in what the layout is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import load_text_encoder
from lumina2_trainer.trainer_core.lumina2.encoders.vae import decode_latents, load_vae
from lumina2_trainer.trainer_core.lumina2.models.base_files import find_model_files
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import load_transformer
from lumina2_trainer.trainer_core.lumina2.models.model_files import LoadSettings, Lumina2Model
from lumina2_trainer.trainer_core.lumina2.models.save import MODEL_LAYOUTS
from lumina2_trainer.trainer_core.stages import save
from safetensors import safe_open
from torch import Tensor

from ..diffusers_reference import run_diffusers
from ..tiny_files import (
    SENTENCES,
    save_all_in_one,
    tiny_gemma,
    tiny_vae,
    write_all_in_one,
    write_diffusers_folder,
    write_split,
)
from ..tiny_models import CPU, TINY, random_samples, relative_error, run_packed, tiny_transformer

KINDS = ("checkpoints", "diffusion_models", "diffusers", "text_encoders", "vae")


def make_context(folder: Path) -> StepContext:
    models = {kind: folder / kind for kind in KINDS}
    for path in models.values():
        path.mkdir(exist_ok=True)
    return StepContext(
        output_dir=folder / "output",
        loras_dir=folder / "loras",
        device=CPU,
        model_dirs={kind: (path,) for kind, path in models.items()},
        model_output_dirs={kind: models[kind] for kind in KINDS[:3]},
    )


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    """A folder of models with the tiny one in every layout a base may have."""
    context = make_context(tmp_path_factory.mktemp("models"))
    dirs = context.model_output_dirs
    write_all_in_one(dirs["checkpoints"] / "one.safetensors")
    for part, kind in (("transformer", "diffusion_models"), ("text_encoder", "text_encoders"), ("vae", "vae")):
        write_split(context.model_dirs[kind][0], part)
    write_diffusers_folder(dirs["diffusers"] / "folder", is_sharded=True)
    return context


BASES = {
    "all-in-one": {"base": "one.safetensors"},
    "split": {"base": "transformer.safetensors", "text_encoder": "text_encoder.safetensors", "vae": "vae.safetensors"},
    "diffusers": {"base": "folder"},
}


def open_base(name: str, context: StepContext) -> Lumina2Model:
    return find_model_files(LoadSettings(precision="fp32", **BASES[name]), context=context)


def contents(model: Lumina2Model) -> dict[str, Tensor]:
    """What the three parts compute."""
    transformer = load_transformer(Path(model.base_path), device=CPU, dtype=torch.float32)
    text_encoder = load_text_encoder(
        Path(model.text_encoder_path), device=CPU, dtype=torch.float32, text_attention="original"
    )
    vae = load_vae(Path(model.vae_path), device=CPU, dtype=torch.float32)
    latents = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    embeds = text_encoder.encode(SENTENCES)
    named = {f"text {i}": embed for i, embed in enumerate(embeds)}
    return {**transformer.state_dict(), **named, "picture": decode_latents(vae, latents)}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("layout", MODEL_LAYOUTS)
def test_saved_model_is_the_model(context: StepContext, base: str, layout: str) -> None:
    model = open_base(base, context)
    settings = save.SaveModelSettings(name="saved", layout=layout, dtype="fp32")
    path = save.save_model(settings, model=model, context=context)
    assert path.parent == context.model_output_dirs[MODEL_LAYOUTS[layout].kind]
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    parts = {} if layout != "transformer" else BASES["split"]
    again = find_model_files(LoadSettings(precision="fp32", **{**parts, "base": path.name}), context=context)
    before, after = contents(model), contents(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_name_is_never_taken_twice_and_weights_are_rounded_to_the_dtype(context: StepContext) -> None:
    model = open_base("all-in-one", context)
    settings = save.SaveModelSettings(name="twice", layout="transformer", dtype="bf16")
    paths = [save.save_model(settings, model=model, context=context) for _ in range(2)]
    assert [path.name for path in paths] == ["twice_00001.safetensors", "twice_00002.safetensors"]
    with safe_open(paths[1], "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
        assert file.metadata()["modelspec.title"] == "twice_00002"


@pytest.mark.parametrize("base", ["all-in-one", "diffusers"])
def test_folder_opens_in_diffusers(context: StepContext, base: str) -> None:
    from diffusers import Lumina2Pipeline

    model = open_base(base, context)
    settings = save.SaveModelSettings(name="pipeline", layout="diffusers", dtype="fp32")
    path = save.save_model(settings, model=model, context=context)
    pipeline = Lumina2Pipeline.from_pretrained(path, torch_dtype=torch.float32)
    assert pipeline.scheduler.config.shift == 6.0
    transformer = load_transformer(Path(model.base_path), device=CPU, dtype=torch.float32)
    samples = random_samples([(5, 6, 10), (9, 4, 4)])
    with torch.no_grad():
        ours = run_packed(transformer, *samples)
    for a, b in zip(ours, run_diffusers(pipeline.transformer, *samples), strict=True):
        assert relative_error(a, b) < 1e-5
    encoder = load_text_encoder(
        Path(model.text_encoder_path), device=CPU, dtype=torch.float32, text_attention="original"
    )
    for prompt, embed in zip(SENTENCES, encoder.encode(SENTENCES), strict=True):
        theirs, mask = pipeline._get_gemma_prompt_embeds(prompt)
        assert mask.sum() == len(embed), prompt
        assert relative_error(theirs[0, : len(embed)], embed) < 1e-5, prompt
    picture = pipeline("a red chair", height=64, width=64, num_inference_steps=2, output_type="pil").images[0]
    assert picture.size == (64, 64)


def test_a_width_that_diffusers_cannot_build_is_refused_and_leaves_nothing(context: StepContext) -> None:
    odd = write_all_in_one(context.model_output_dirs["checkpoints"] / "odd.safetensors", replace(TINY, mlp_size=640))
    model = find_model_files(LoadSettings(base=odd.name), context=context)
    folder = context.model_output_dirs["diffusers"]
    before = sorted(folder.iterdir())
    with pytest.raises(TrainerError, match="MLP is 640 wide, but diffusers' Lumina2 has 512 at width 96"):
        save.save_model(save.SaveModelSettings(layout="diffusers"), model=model, context=context)
    assert sorted(folder.iterdir()) == before


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    import io

    import sentencepiece

    unigram = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=unigram,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    context = make_context(tmp_path)
    save_all_in_one(
        tmp_path / "checkpoints" / "other.safetensors",
        transformer=tiny_transformer(),
        text_encoder_state=tiny_gemma().state_dict(),
        spiece_bytes=unigram.getvalue(),
        vae_state=tiny_vae().state_dict(),
        metadata={},
    )
    model = find_model_files(LoadSettings(base="other.safetensors"), context=context)
    with pytest.raises(TrainerError, match=r"tokenizer is not of Gemma2's kind, and tokenizer\.json would read"):
        save.save_model(save.SaveModelSettings(layout="diffusers"), model=model, context=context)
    assert list((tmp_path / "diffusers").iterdir()) == []
