"""Jobs with every kind of adapter: they resume exactly, start from files, and refuse what cannot work at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.adapters import lycoris as lycoris_module
from lumina2_trainer.trainer_core.adapters.export import read_adapter
from lumina2_trainer.trainer_core.adapters.kinds import ADAPTERS, AdapterSettings
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, restore_lora_start
from lumina2_trainer.trainer_core.adapters.lycoris_settings import LyCORISSettings
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.run.job import TrainJob, fingerprint_job
from lumina2_trainer.trainer_core.stages import save, validate
from lumina2_trainer.trainer_core.stages.train import TrainResult
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapters.test_kinds import VARIANTS, attach, export
from ..training_setup import TRAIN, Setup

pytestmark = pytest.mark.train

RANKED = replace(TRAIN, rank=8, alpha=12.0, steps=3)
RESUMED: dict[str, tuple[str, AdapterSettings]] = {
    **{f"{name} on fp32": ("fp32", VARIANTS[name]) for name in ADAPTERS},
    "lokr with dropout": ("fp32", LyCORISSettings(dropout=0.3, rank_dropout=0.2, module_dropout=0.3)),
    "dora with dropout": ("fp32", LoRASettings(use_dora=True, dropout=0.3)),
    "pissa with dropout": ("fp32", LoRASettings(init="pissa", dropout=0.3)),
    "pissa on bf16": ("bf16", VARIANTS["lora, pissa"]),
    "dylora on bf16": ("bf16", VARIANTS["dylora"]),
    "dora on int8": ("int8", VARIANTS["lora, dora"]),
    "glora on int8": ("int8", VARIANTS["glora"]),
}
"""Precision and settings."""


def tensors_of(result: TrainResult) -> dict[str, Tensor]:
    return read_adapter(Path(result.adapter.path)).tensors


@pytest.mark.train
@pytest.mark.parametrize("case", RESUMED)
def test_every_kind_resumes_exactly(fresh: Setup, tmp_path: Path, case: str) -> None:
    precision, settings = RESUMED[case]
    setup = replace(fresh, model=replace(fresh.model, precision=precision))
    whole = setup.trained(RANKED, adapter_settings=settings)
    other, asked = setup.moved_to(tmp_path / "stopped"), iter([False, True])
    with pytest.raises(StopTraining):
        other.with_stop(lambda: next(asked)).train(RANKED, adapter_settings=settings)
    resumed = other.train(RANKED, adapter_settings=settings)
    assert resumed.losses == whole.losses
    first, second = tensors_of(whole), tensors_of(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_an_adapter_started_from_is_part_of_its_file() -> None:
    settings = LoRASettings(init="pissa")
    transformer, parameters = attach(settings)
    exported = export(settings, transformer, parameters)
    key = "diffusion_model.layers.0.attention.qkv.lora_A.weight"
    assert len(exported[key]) == 16
    other = {**exported, key: exported[key] + torch.arange(16.0)[:, None]}
    restore_lora_start(transformer, other)
    after = export(settings, transformer, parameters)[key]
    assert torch.equal(after[:8], exported[key][:8]) and torch.equal(after[8:], other[key][8:])


def test_pictures_are_drawn_with_every_kind_of_file(fresh: Setup) -> None:
    for settings in (LyCORISSettings(algorithm="glora"), LoRASettings(use_dora=True)):
        own = fresh.moved_to(fresh.context.output_dir / settings.kind)
        result = own.trained(RANKED, adapter_settings=settings)
        request = ValidateSettings(prompts="a red square", width=64, height=64, num_inference_steps=1)
        drawn = validate.validate(request, model=own.model, adapter=result.adapter, context=own.context)
        assert len(drawn.images) == 1


def test_metadata_names_the_kind(fresh: Setup) -> None:
    result = fresh.train(RANKED, adapter_settings=LyCORISSettings(algorithm="loha"))
    metadata = read_adapter(Path(result.adapter.path)).metadata
    assert metadata["lumina2_trainer.adapter"] == "loha"
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"]) == {"algo": "loha"}


def test_kinds_that_diffusers_cannot_load_are_refused_there(fresh: Setup) -> None:
    result = fresh.trained(RANKED, adapter_settings=LyCORISSettings())
    for format in ("diffusers", "both"):
        settings = save.SaveAdapterSettings(name="unfit", format=format)
        with pytest.raises(TrainerError, match="diffusers loads only plain LoRAs, but this adapter has lokr_w"):
            save.save_adapter(settings, adapter=result.adapter, context=fresh.context)
    assert not list(fresh.context.loras_dir.glob("unfit*")), "one of two files was written"
    saved = save.save_adapter(save.SaveAdapterSettings(), adapter=result.adapter, context=fresh.context)
    assert load_file(saved[0])


def test_saving_keeps_row_lengths_in_float32(fresh: Setup) -> None:
    result = fresh.trained(RANKED, adapter_settings=LoRASettings(use_dora=True))
    (path,) = save.save_adapter(save.SaveAdapterSettings(dtype="bf16"), adapter=result.adapter, context=fresh.context)
    dtypes = {name.rpartition(".")[2]: tensor.dtype for name, tensor in load_file(path).items()}
    assert dtypes == {"weight": torch.bfloat16, "dora_scale": torch.float32}


def with_start(setup: Setup, tensors: dict[str, Tensor], name: str = "start.safetensors") -> Setup:
    """A setup whose models/loras holds this file."""
    folder = setup.context.output_dir.parent / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    dirs = {**setup.context.model_dirs, "loras": (folder,)}
    return replace(setup, context=replace(setup.context, model_dirs=dirs))


def test_training_goes_on_from_a_file(fresh: Setup) -> None:
    first = fresh.trained(RANKED)
    setup = with_start(fresh, tensors_of(first)).moved_to(fresh.context.output_dir / "next")
    settings = replace(RANKED, learning_rate=0.0)
    anew = setup.moved_to(setup.context.output_dir / "anew").train(settings)
    going_on = setup.train(settings, adapter_settings=LoRASettings(start_from="start.safetensors"))
    assert going_on.losses[0] != anew.losses[0]
    for name, tensor in tensors_of(first).items():
        torch.testing.assert_close(tensors_of(going_on)[name], tensor)


def test_another_file_to_start_from_is_another_job(fresh: Setup) -> None:
    def identity(setup: Setup) -> str:
        path = setup.context.find_model(("loras",), "start.safetensors", "start_from")
        adapter = LoRASettings(start_from=str(path))
        return fingerprint_job(
            TrainJob(model=setup.model, latents=setup.latents, embeds=setup.embeds, train=TRAIN, adapter=adapter)
        )

    tensors = {"diffusion_model.layers.0.attention.out.lora_A.weight": torch.zeros(2, 96)}
    first = identity(with_start(fresh, tensors))
    assert identity(with_start(fresh, tensors)) == first
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    assert identity(with_start(fresh, changed)) != first


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            LyCORISSettings(algorithm="boft", targets="attention"),
            r"boft cannot split .*raise rank to",
        ),
        (LyCORISSettings(algorithm="dylora", block_size=3), "block_size is 3, which does not divide rank 2"),
        (LyCORISSettings(overrides="nowhere rank=3"), "overrides: 'nowhere' matches no layer"),
        (LyCORISSettings(targets="pattern", target_pattern="nowhere"), "matches no layer: names look like"),
        (LoRASettings(init="olora", overrides=".* rank=300"), "init olora needs a rank that is not higher"),
        (LoRASettings(start_from="missing.safetensors"), r"start_from 'missing\.safetensors' was not found"),
    ],
)
def test_bad_settings_are_refused_before_weights_load(
    fresh: Setup, monkeypatch: pytest.MonkeyPatch, settings: AdapterSettings, match: str
) -> None:
    monkeypatch.setattr("lumina2_trainer.trainer_core.run.train.load_base_transformer", _must_not_load)
    with pytest.raises(TrainerError, match=match):
        fresh.train(TRAIN, adapter_settings=settings)


def test_missing_library_is_named_before_weights_load(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumina2_trainer.trainer_core.run.train.load_base_transformer", _must_not_load)
    monkeypatch.setattr(lycoris_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainerError, match=r"algorithm lokr needs .*pip install lycoris-lora"):
        fresh.train(TRAIN, adapter_settings=LyCORISSettings())


def _must_not_load(*args: object, **kwargs: object) -> None:
    raise AssertionError("weights were loaded")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LyCORISSettings(factor=0), "factor is 0: choose a size of at least 1, or -1"),
        (lambda: LyCORISSettings(algorithm="loha", factor=8), "factor is 8 but algorithm loha does not use it"),
        (lambda: LyCORISSettings(algorithm="diag-oft", rescaled=True), "rescaled is True but algorithm diag-oft"),
        (lambda: LyCORISSettings(decompose_both=True), "decompose_both splits what full_matrix keeps whole"),
        (lambda: LyCORISSettings(algorithm="ia3"), "algorithm is 'ia3': choose one of lokr"),
        (lambda: LyCORISSettings(overrides="("), "sets nothing: write a regular expression"),
        (lambda: LyCORISSettings(overrides="( rank=2"), "is not a regular expression"),
        (lambda: LoRASettings(overrides=".* factor=2"), "sets 'factor': only rank, alpha can be set by layer"),
        (lambda: LoRASettings(overrides=".* rank=0"), "rank must be from 1 to 512"),
        (lambda: LoRASettings(overrides=".* rank=x"), "'x' is not a number for rank"),
        (lambda: LoRASettings(init="loftq"), "init is 'loftq': choose one of default, gaussian, pissa, olora"),
        (lambda: LoRASettings(init="pissa", use_dora=True), "init is pissa, which cannot be combined with use_dora"),
        (lambda: LoRASettings(init="olora", start_from="x"), "start_from brings its own values: set init to default"),
    ],
)
def test_settings_that_contradict_are_refused(make: object, match: str) -> None:
    with pytest.raises(TrainerError, match=match):
        make()  # type: ignore[operator]


def test_lycoris_training_goes_on_from_a_file(fresh: Setup) -> None:
    first = fresh.train(adapter_settings=LyCORISSettings())
    setup = with_start(fresh, tensors_of(first)).moved_to(fresh.context.output_dir / "next")
    settings = LyCORISSettings(start_from="start.safetensors")
    going_on = setup.train(replace(TRAIN, learning_rate=0.0), adapter_settings=settings)
    assert going_on.losses[0] != first.losses[0]
    for name, tensor in tensors_of(first).items():
        torch.testing.assert_close(tensors_of(going_on)[name], tensor)
    lora = with_start(fresh, tensors_of(fresh.trained(RANKED))).moved_to(fresh.context.output_dir / "other")
    with pytest.raises(
        TrainerError, match=r"holds lora for .*, but algorithm is lokr: choose algorithm locon or dylora"
    ):
        lora.train(adapter_settings=settings)
