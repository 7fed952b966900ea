"""From SimpleTuner's keys to settings, and what is said of each key."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.importers.simpletuner.adapter_keys import LYCORIS_KEYS
from lumina2_trainer.trainer_core.importers.simpletuner.command import read_translation
from lumina2_trainer.trainer_core.importers.simpletuner.dataset_keys import DATASET_KEYS
from lumina2_trainer.trainer_core.importers.simpletuner.report import report_text
from lumina2_trainer.trainer_core.importers.simpletuner.rules import Options, find_rule
from lumina2_trainer.trainer_core.importers.simpletuner.translate import (
    CONFIG_KEYS,
    DEFAULT,
    IGNORED,
    MAPPED,
    UNKNOWN,
    Backends,
    Translation,
    translate,
)
from lumina2_trainer.trainer_core.workflow.canvas import FULL_PARTS, PARTS
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

from .quickstart_files import LOKR, PICTURES, QUICKSTART, TEXT_EMBEDS, minimal, translate_files, write_files

QUICKSTART_SETTINGS = {
    "model.precision": "int8",
    "model.base": "lumina_2.safetensors",
    "train.steps": 400000,
    "train.batch_size": 4,
    "train.learning_rate": 1e-4,
    "train.rank": 16,
    "train.alpha": 16.0,
    "train.optimizer": "adamw_bf16",
    "train.seed": 42,
    "train.run_name": "lumina2",
    "train.gradient_checkpointing": True,
    "lora.targets": "attention",
    "lora.dropout": 0.1,
    "optimizer.lr_schedule": "constant",
    "noise.shift_mode": "auto",
    "latents.batch_size": 1,
    "checkpoints.checkpoint_step_interval": 50,
    "checkpoints.use_ema": True,
    "validation.prompts": "a cat that looks out of a window",
    "validation.negative_prompt": "blurry, cut off",
    "validation.guidance_scale": 4.0,
    "validation.num_inference_steps": 40,
    "validation.width": 1024,
    "validation.height": 1024,
    "validation.seed": 42,
    "validation.every_num_steps": 50,
    "validation.more_sizes": "",
    "validation.guidance_rescale": 0.0,
    "validation.prompt_library": "",
    "validation.draw_unconditional": False,
    "validation.draw_base": True,
    "validation.clip_model": "openai/clip-vit-large-patch14",
    "validation.held_out_share": 0.0,
    "tracking.report_to": "wandb",
    "tracking.project_name": "lumina2-training",
    "tracking.run_name": "lumina2-lora",
    "hub.repo_id": "lumina2-lora",
    "hub.push": "checkpoints",
    "hub.private": True,
    "save.name": "lumina2",
}


def settings_of(translation: Any, target: str) -> Any:
    part, _, name = target.partition(".")
    return getattr(translation.settings[part], name)


def state_of(translation: Any, key: str) -> tuple[str, str]:
    row = next(row for row in translation.rows if row.key == key)
    return row.state, row.note


@pytest.mark.parametrize("target", QUICKSTART_SETTINGS)
def test_quickstart_sets_what_it_says(tmp_path: Path, target: str) -> None:
    assert settings_of(translate_files(tmp_path), target) == QUICKSTART_SETTINGS[target]


def test_quickstart_dataset_is_the_files(tmp_path: Path) -> None:
    (dataset,) = translate_files(tmp_path).datasets
    wanted = {
        "folder": "/datasets/training",
        "aspect": "square",
        "crop_style": "center",
        "resolution": 1024,
        "resolution_type": "pixel_area",
        "minimum_image_size": 512.0,
        "maximum_image_size": 2048.0,
        "target_downsample_size": 1024.0,
        "caption_source": "textfile",
        "caption_lines": "one_each",
        "repeats": 1,
    }
    assert {name: getattr(dataset, name) for name in wanted} == wanted


def test_every_key_of_the_quickstart_is_mapped_or_ignored_for_a_reason(tmp_path: Path) -> None:
    translation = translate_files(tmp_path)
    written = [row.key for row in translation.rows if row.state != DEFAULT]
    assert sorted(written) == sorted([*QUICKSTART, *PICTURES, *TEXT_EMBEDS])
    assert all(row.note for row in translation.rows if row.state == IGNORED)
    assert {row.state for row in translation.rows} == {MAPPED, DEFAULT, IGNORED}
    text = report_text(translation)
    assert all(f"    {key}" in text for key in written)


def test_dashes_in_front_of_keys_change_nothing(tmp_path: Path) -> None:
    dashed = {f"--{key}": value for key, value in QUICKSTART.items()}
    assert translate_files(tmp_path / "a", dashed).settings == translate_files(tmp_path / "b").settings


def test_numbers_may_be_texts(tmp_path: Path) -> None:
    texts = {key: str(value) for key, value in QUICKSTART.items()}
    assert translate_files(tmp_path / "a", texts).settings == translate_files(tmp_path / "b").settings


def test_toml_is_read_too(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    write_files(tmp_path)
    (tmp_path / "config.toml").write_text('model_family = "lumina2"\nmodel_type = "lora"\nlora_rank = 32\n')
    translation = read_translation(tmp_path / "config.toml", tmp_path / "multidatabackend.json")
    assert settings_of(translation, "train.rank") == 32


def test_shell_variables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"config.env is a file of shell variables: give SimpleTuner's config.json"):
        read_translation(tmp_path / "config.env")


def test_unknown_key_is_named_and_harmless(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, minimal(lora_rnak=8), [{**PICTURES, "colour": 1}])
    assert [row.key for row in translation.rows if row.state == UNKNOWN] == ["lora_rnak", "colour"]
    assert "not known" in report_text(translation)


def test_what_is_not_written_takes_simpletuners_default(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, minimal())
    wanted = {
        "train.batch_size": 4,
        "noise.shift_mode": "static",
        "noise.static_shift": 3.0,
        "checkpoints.checkpoint_step_interval": 500,
        "lora.targets": "attention",
    }
    assert {target: settings_of(translation, target) for target in wanted} == wanted
    assert not {"validation", "tracking", "hub", "lycoris"} & set(translation.settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": "many"}, r"config.json: lora_rank is 'many': it must be a number"),
        ({"lora_rank": 1.5}, r"config.json: lora_rank is 1.5: it must be a whole number"),
        ({"lora_rank": 0}, r"config.json: lora_rank, as Train LoRA: rank is 0: it must be at least 1"),
        ({"learning_rate": float("nan")}, r"learning_rate is nan: it must be a finite number"),
        ({"use_ema": "perhaps"}, r"use_ema is 'perhaps': it must be true or false"),
        ({"optimizer": "adamww"}, r"optimizer is 'adamww': it must be one of adamw_bf16, optimi-adamw"),
        ({"lr_scheduler": ["x"]}, r"lr_scheduler is \['x'\]: it must be a text"),
        ({"base_model_precision": "int7"}, r"base_model_precision is 'int7': it must be no_change or"),
        ({"model_family": "flux"}, r"model_family is 'flux': it must be one of lumina2"),
        ({"model_type": "controlnet"}, r"model_type is 'controlnet': it must be one of lora, full"),
        ({"max_train_steps": 5, "num_train_epochs": 2}, r"num_train_epochs is 2: it must be 0 where max_train_steps"),
        ({"max_train_steps": -5}, r"max_train_steps is -5: it must be 0 or more"),
        ({"validation_resolution": "big", "validation_prompt": "x"}, r'validation_resolution is .big.: .*"1024x1024"'),
        ({"flow_custom_timesteps": "1,x"}, r"flow_custom_timesteps is '1,x': it must be a list of numbers"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, r"hub_model_id, as Hub Upload: repo_id is 'a/b/c'"),
        (
            {"lora_type": "lycoris", "lycoris_config": "gone.json"},
            r"lycoris_config is 'gone.json', which was not found",
        ),
        ({"data_backend_config": "gone.json"}, r"data_backend_config is 'gone.json', which was not found"),
    ],
)
def test_bad_value_is_one_sentence(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message) as caught:
        translate_files(tmp_path, minimal(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["model_family", "model_type"])
def test_required_key_is_asked_for(tmp_path: Path, key: str) -> None:
    config = minimal()
    del config[key]
    with pytest.raises(TrainerError, match=f"{key} is missing: it must be one of"):
        translate_files(tmp_path, config)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"a": 1, "--a": 2}'])
def test_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str) -> None:
    path = write_files(tmp_path)
    path.write_text(content)
    with pytest.raises(TrainerError, match=r"config\.json"):
        read_translation(path)


@pytest.mark.parametrize("value", [None, [], {}, "", "x", -1, 1e308, True, [{"a": None}]], ids=repr)
@pytest.mark.parametrize("kind", [{}, {"model_type": "full"}, {"lora_type": "lycoris"}], ids=str)
def test_no_value_of_any_key_crashes(kind: dict[str, Any], value: Any) -> None:
    config = minimal(validation_prompt="x", push_to_hub=True, report_to="wandb", hub_model_id="a", loss_type="huber")
    config |= {"scheduled_sampling_max_step_offset": 8, "scheduled_sampling_probability": 0.5} | kind
    cases = [({**config, key.replace("*", "x"): value}, PICTURES, LOKR) for key in CONFIG_KEYS]
    if not kind:
        cases += [(config, {**PICTURES, key.replace("*", "x"): value}, LOKR) for key in DATASET_KEYS]
    if "lora_type" in kind:
        cases += [(config, PICTURES, {**LOKR, key.replace("*", "x"): value}) for key in LYCORIS_KEYS]
    whole = read_parts(config, PICTURES, LOKR)
    assert {"rollout", "validation", "tracking", "hub"} <= set(whole.settings)
    for changed, pictures, lycoris in cases:
        with contextlib.suppress(TrainerError):
            read_parts(changed, pictures, lycoris)


def read_parts(config: Any, pictures: Any, lycoris: Any) -> Translation:
    """Without files."""
    lokr = Options(where="lycoris", given=lycoris) if config.get("lora_type") == "lycoris" else None
    return translate(Options(where="config", given=config), Backends(where="data", entries=[pictures]), lokr)


def test_targets_of_all_rules_are_settings_of_their_nodes() -> None:
    for key, rule in CONFIG_KEYS.items():
        for target in rule.targets:
            part, _, name = target.partition(".")
            nodes = [PARTS[part].node, *([PARTS[FULL_PARTS[part]].node] if part in FULL_PARTS else [])]
            names = {field.name for node in nodes for field in dataclasses.fields(NODE_STEPS[node].settings)}
            assert not name or name in names, key
        assert rule.targets or rule.note, key


def test_longest_beginning_of_a_key_counts() -> None:
    assert find_rule(CONFIG_KEYS, "gradient_checkpointing_interval") is CONFIG_KEYS["gradient_checkpointing_*"]
    assert find_rule(CONFIG_KEYS, "gradient_checkpointing") is CONFIG_KEYS["gradient_checkpointing"]
    assert find_rule(CONFIG_KEYS, "something_else") is None


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"flow_schedule_shift": 0}, {"noise.shift_mode": "none"}),
        ({"flow_schedule_shift": 2.5}, {"noise.shift_mode": "static", "noise.static_shift": 2.5}),
        ({"flow_schedule_shift": 2.5, "flow_schedule_auto_shift": True}, {"noise.shift_mode": "auto"}),
        ({"flow_use_uniform_schedule": True}, {"noise.timestep_sampling": "uniform"}),
        (
            {"flow_use_beta_schedule": True, "flow_beta_schedule_alpha": 3},
            {"noise.timestep_sampling": "beta", "noise.beta_alpha": 3.0},
        ),
        (
            {"flow_custom_timesteps": "1000, 500", "flow_timesteps_mode": "round-robin"},
            {"noise.timestep_sampling": "custom_in_turn", "noise.custom_sigmas": "1, 0.5"},
        ),
        ({"loss_type": "huber"}, {"noise.loss_delta": 0.1, "noise.loss_delta_schedule": "snr"}),
        ({"lr_scheduler": "sine"}, {"optimizer.lr_schedule": "cosine"}),
        (
            {"lr_scheduler": "polynomial", "learning_rate": 1e-4, "lr_end": 1e-5},
            {"optimizer.lr_power": 0.8, "optimizer.lr_end_ratio": pytest.approx(0.1)},
        ),
        (
            {"learning_rate": 1e-4, "lr_scale": True, "train_batch_size": 2, "gradient_accumulation_steps": 3},
            {"train.learning_rate": pytest.approx(6e-4), "optimizer.gradient_accumulation_steps": 3},
        ),
        (
            {"optimizer_config": "weight_decay=0.2,eps=1e-7,foo=1"},
            {"optimizer.weight_decay": 0.2, "optimizer.epsilon": 1e-7},
        ),
        ({"optimizer": "optimi-lion", "adam_epsilon": 1e-8, "optimizer_beta1": 0.8}, {"optimizer.epsilon": -1.0}),
        ({"optimizer": "optimi-adamw", "adam_epsilon": 1e-7}, {"optimizer.epsilon": 1e-7}),
        ({"lora_rank": 8}, {"train.alpha": 8.0}),
        (
            {"peft_lora_target_modules": ["to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "linear_3"]},
            {"lora.targets": "attention_mlp"},
        ),
        ({"init_lora": "out/my.safetensors"}, {"lora.start_from": "my.safetensors"}),
        ({"init_lora": "my.safetensors", "lora_init_type": "pissa"}, {"lora.init": "default"}),
        ({"lora_format": "diffusers"}, {"save.format": "both"}),
        ({"lora_format": "diffusers", "use_dora": True}, {"save.format": "comfyui"}),
        *(
            ({"base_model_precision": name}, {"model.precision": "nf4"})
            for name in (
                "nf4-bnb",
                "int4-quanto",
                "int2-quanto",
                "int8dq-int4-torchao",
                "fp8-int4-torchao",
                "sdnq-uint3",
            )
        ),
        ({"base_model_precision": "int6-sdnq"}, {"model.precision": "int8"}),
        ({"base_model_precision": "int8dq-torchao"}, {"model.precision": "int8"}),
        ({"base_model_precision": "fp8-torchao"}, {"model.precision": "fp8"}),
        ({"base_model_precision": "nf4-bnb", "model_type": "full"}, {"model.precision": "bf16"}),
        ({"mixed_precision": "no"}, {"model.precision": "fp32"}),
        ({"model_flavour": "neta-lumina"}, {"embeds.system_prompt": "anime"}),
        ({"pretrained_model_name_or_path": "/models/base.safetensors"}, {"model.base": "/models/base.safetensors"}),
        ({"checkpoints_total_limit": 0}, {"checkpoints.num_checkpoints_kept": 1000}),
        ({"output_dir": "/runs/My cats!"}, {"train.run_name": "My-cats", "save.name": "My-cats"}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_option_becomes_setting(tmp_path: Path, options: dict[str, Any], wanted: dict[str, Any]) -> None:
    translation = translate_files(tmp_path, minimal(**options))
    assert {target: settings_of(translation, target) for target in wanted} == wanted


def test_full_model_has_no_adapter(tmp_path: Path) -> None:
    config = {**QUICKSTART, "model_type": "full", "output_dir": "output/whole"}
    translation = translate_files(tmp_path, config)
    assert translation.is_full
    assert not {"lora", "lycoris"} & set(translation.settings)
    assert settings_of(translation, "model.precision") == "bf16"
    assert settings_of(translation, "save.weights") == "ema"
    assert settings_of(translation, "train.run_name") == "whole"
    assert state_of(translation, "lora_rank") == (IGNORED, "model_type is full, there is no adapter")


def test_push_of_checkpoints_needs_the_push(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, {**QUICKSTART, "push_to_hub": False})
    assert "hub" not in translation.settings
    assert state_of(translation, "push_checkpoints_to_hub")[0] == IGNORED
    assert state_of(translation, "hub_model_id") == (IGNORED, "push_to_hub is off")


def test_lokr_of_the_lycoris_file(tmp_path: Path) -> None:
    translation = translate_files(tmp_path, {**QUICKSTART, "lora_type": "lycoris"}, lycoris=LOKR)
    lycoris = translation.settings["lycoris"]
    assert (lycoris.algorithm, lycoris.factor, lycoris.full_matrix) == ("lokr", 16, True)
    assert lycoris.targets == "attention_mlp"
    assert lycoris.overrides == r".*\.feed_forward\..* factor=8"
    assert settings_of(translation, "train.alpha") == 1.0
    assert "lora" not in translation.settings
    assert {row.key for row in translation.rows if row.where == "lycoris_config.json"} >= set(LOKR)


def test_lycoris_adapter_starts_from_a_file_too(tmp_path: Path) -> None:
    config = minimal(lora_type="lycoris", init_lora="/out/my.safetensors")
    translation = translate_files(tmp_path, config, lycoris=LOKR)
    assert translation.settings["lycoris"].start_from == "my.safetensors"
    assert "models/loras" in state_of(translation, "init_lora")[1]


@pytest.mark.parametrize("algo", ["lora", "locon", "loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft"])
def test_lycoris_algorithms_build(tmp_path: Path, algo: str) -> None:
    file = {"algo": algo, "multiplier": 1, "linear_dim": 16, "linear_alpha": 8, "factor": 4, "block_size": 2}
    translation = translate_files(tmp_path, minimal(lora_type="lycoris"), lycoris=file)
    assert translation.settings["lycoris"].targets == "attention"
    assert settings_of(translation, "train.alpha") == 8.0


@pytest.mark.parametrize(
    "preset",
    [
        {"target_module": [["Attention"]]},
        {"target_module": "Attention"},
        {"module_algo_map": [1]},
        {"target_module": ["Attention"], "module_algo_map": {"Attention": {"linear_dim": None, "algo": "loha"}}},
        {"target_module": ["Attention"], "module_algo_map": {"Attention": 3, "Other": {}}},
    ],
    ids=str,
)
def test_odd_preset_is_a_sentence_or_a_note(tmp_path: Path, preset: dict[str, Any]) -> None:
    files = {"lycoris": {**LOKR, "apply_preset": preset}}
    try:
        translation = translate_files(tmp_path, minimal(lora_type="lycoris"), **files)
    except TrainerError as error:
        assert "lycoris_config.json: apply_preset is" in str(error)  # noqa: PT017
    else:
        assert state_of(translation, "apply_preset")[1]
        assert translation.settings["lycoris"].overrides == ""


def test_lycoris_algorithm_that_is_not_offered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"lycoris_config.json: algo is 'ia3': it must be one of lora, locon"):
        translate_files(tmp_path, minimal(lora_type="lycoris"), lycoris={"algo": "ia3"})
