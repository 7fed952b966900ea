"""Keys of the run itself: model, precision, length, seed, checkpoints, running average."""

from __future__ import annotations

from pathlib import PurePosixPath

from .rules import (
    Options,
    Outcome,
    Rules,
    by,
    count,
    file_name,
    flag,
    ignored,
    number,
    one_of,
    text,
    to,
    together,
    whole,
)

FULL_MODEL = "full"
BASE_FILE = "lumina_2.safetensors"
"""Lumina-Image-2.0 in one file, as ComfyUI's users know it."""
FLAVOURS = {
    "2.0": ("Alpha-VLLM/Lumina-Image-2.0", "superior"),
    "neta-lumina": ("terminusresearch/neta-lumina-v1", "anime"),
}
"""The hub's repository and the system prompt of each."""
EIGHT_BIT = {
    "int8-torchao": "int8",
    "int8-quanto": "int8",
    "int8dq-torchao": "int8",
    "int8-sdnq": "int8",
    "sdnq-int8": "int8",
    "uint8-sdnq": "int8",
    "sdnq-uint8": "int8",
    "fp8-torchao": "fp8",
    "fp8wo-torchao": "fp8",
    "fp8-quanto": "fp8",
    "fp8uz-quanto": "fp8",
    "fp8-native": "fp8",
    "fp8-transformerengine": "fp8",
    "fp8-sdnq": "fp8",
    "sdnq-fp8": "fp8",
}
FEWER_BITS: dict[str, tuple[str, str]] = {
    "nf4": ("nf4", ""),
    **dict.fromkeys(("int4", "uint4", "int8dq-int4", "fp8-int4"), ("nf4", "4 bits are always nf4 here")),
    **dict.fromkeys(("int2", "uint2", "int3", "uint3"), ("nf4", "4 bits are the fewest here")),
    **dict.fromkeys(("int5", "uint5", "int6", "uint6"), ("int8", "8 bits are the next here that lose no more")),
}
"""By how names of precisions below 8 bits begin, after "sdnq-": ours, and in what it differs."""
SELF_AVERAGING = "adamw_schedulefree"


def is_full(options: Options) -> bool:
    """Whether the model's own weights are trained."""
    return text(options, "model_type").strip().lower() == FULL_MODEL


def is_lycoris(options: Options) -> bool:
    """Whether the adapter is one of LyCORIS."""
    return not is_full(options) and text(options, "lora_type").strip().lower() == "lycoris"


def _family(options: Options, key: str) -> Outcome:
    one_of({"lumina2": True})(options, key)
    return Outcome(values={"model": ""})


def _model_type(options: Options, key: str) -> Outcome:
    one_of({"lora": 0, FULL_MODEL: 0})(options, key)
    if is_full(options):
        return Outcome(values={"train": "", "save": ""})
    return Outcome(values={"train": "", "save": ""})


def _lora_type(options: Options, key: str) -> Outcome:
    one_of({"standard": 0, "lycoris": 0})(options, key)
    if is_full(options):
        return Outcome(note="model_type is full, there is no adapter")
    if is_lycoris(options):
        return Outcome(values={"lycoris": ""})
    return Outcome(values={"lora": ""})


def _flavour(options: Options, key: str) -> Outcome:
    repo_id, system_prompt = one_of(FLAVOURS)(options, key)
    values = {"embeds.system_prompt": system_prompt}
    if _is_file(text(options, "pretrained_model_name_or_path")):
        values["hub.base_model"] = repo_id
    return Outcome(values=values, note="choose the file of this model in Load Lumina2")


def _is_file(value: str) -> bool:
    """Not a repository of the hub, which is "owner/name"."""
    return not value or value.startswith(("/", ".", "~")) or value.endswith(".safetensors") or value.count("/") != 1


def _base(options: Options, key: str) -> Outcome:
    value = text(options, key)
    if not _is_file(value):
        note = f"{BASE_FILE} is taken from ComfyUI's models: nothing is downloaded, choose your file in Load Lumina2"
        return Outcome(values={"model.base": BASE_FILE, "hub.base_model": value}, note=note)
    if not value:
        return Outcome(values={"model.base": BASE_FILE}, note="choose your file in Load Lumina2")
    return Outcome(values={"model.base": value})


def _text_encoder(options: Options, key: str) -> Outcome:
    value = text(options, key)
    if _is_file(value) and value:
        return Outcome(values={"model.text_encoder": value})
    return Outcome(note="nothing is downloaded: choose the file in Load Lumina2")


def _vae(options: Options, key: str) -> Outcome:
    value = text(options, key)
    if _is_file(value) and value:
        return Outcome(values={"model.vae": value})
    return Outcome(note="nothing is downloaded: choose the file in Load Lumina2")


def _precision(options: Options, key: str) -> Outcome:
    name = text(options, key).strip().lower() or "no_change"
    if name == "no_change":
        return Outcome(values={"model.precision": _plain_precision(options)})
    if is_full(options):
        return Outcome(
            values={"model.precision": _plain_precision(options)},
            note="weights that are trained cannot be quantised; SimpleTuner refuses this too",
        )
    if name in EIGHT_BIT:
        return Outcome(values={"model.precision": EIGHT_BIT[name]})
    plain = name.removeprefix("sdnq-")
    few = next((few for beginning, few in FEWER_BITS.items() if plain.startswith(beginning)), None)
    if few:
        return Outcome(values={"model.precision": few[0]}, note=few[1])
    if plain.startswith(("int16", "uint16", "fp16")):
        return Outcome(values={"model.precision": "bf16"}, note="16 bits are bf16 here")
    raise options.error(key, "no_change or a precision such as int8-torchao or fp8-torchao")


def _plain_precision(options: Options) -> str:
    """Of a base that is not quantised."""
    is_exact = text(options, "mixed_precision").strip().lower() == "no"
    default_dtype = text(options, "base_model_default_dtype").strip().lower()
    return "fp32" if is_exact or default_dtype == "fp32" else "bf16"


def _mixed_precision(options: Options, key: str) -> Outcome:
    name = one_of({"bf16": "bf16", "no": "no", "fp16": "fp16", "fp8": "fp8"})(options, key)
    notes = {
        "bf16": "read together with base_model_precision: the computation is in bf16",
        "no": "read together with base_model_precision: fp32 where the base is not quantised",
        "fp16": "not offered, Lumina2 overflows fp16: bf16 is taken",
        "fp8": "not offered for the computation: choose precision fp8 in Load Lumina2 for 8-bit products",
    }
    return Outcome(values={"model": ""} if name in ("bf16", "no") else {}, note=notes[name])


def _steps(options: Options, key: str) -> Outcome:
    steps = count(options, key)
    if steps and count(options, "num_train_epochs"):
        raise options.error("num_train_epochs", "0 where max_train_steps is set: only one of both counts")
    if steps:
        return Outcome(values={"train.steps": steps})
    return Outcome(note="0 leaves the length to num_train_epochs")


def _epochs(options: Options, key: str) -> Outcome:
    if not count(options, key):
        return Outcome(note="0 leaves the length to max_train_steps")
    return Outcome(
        note="a run's length is counted in steps here: set steps of the Train node to epochs x pictures x repeats"
        " / (batch_size x gradient_accumulation_steps)"
    )


def _output_dir(options: Options, key: str) -> Outcome:
    name = file_name(PurePosixPath(text(options, key).replace("\\", "/")).name, "simpletuner")
    note = "the run is the folder lumina2_trainer/<run_name> of ComfyUI's output, or of --output"
    return Outcome(values={"train.run_name": name, "save.name": name}, note=note)


def _seed(options: Options, key: str) -> Outcome:
    value = options.get(key)
    if value is None or whole(options, key) < 0:
        return Outcome(note="a random seed is not repeatable: 42 is taken")
    return Outcome(values={"train.seed": whole(options, key)})


def _kept_checkpoints(options: Options, key: str) -> Outcome:
    kept = count(options, key)
    note = "" if kept else "without a limit there; 1000 is the most here"
    return Outcome(values={"checkpoints.num_checkpoints_kept": kept or 1000}, note=note)


def _use_ema(options: Options, key: str) -> Outcome:
    if flag(options, key) and text(options, "optimizer").startswith(SELF_AVERAGING):
        return Outcome(note="a schedule-free optimizer averages the weights itself")
    values = {"checkpoints.use_ema": flag(options, key)}
    if flag(options, key) and is_full(options):
        return Outcome(values={**values, "save.weights": "ema"}, note="the average is what is saved, as there")
    return Outcome(values=values)


RUN_KEYS: Rules = {
    "model_family": by(_family, "model", note="lumina2 is what this pack trains"),
    "model_type": by(_model_type, "train", "save", note="lora; full is Train Full Model and Save Model"),
    "lora_type": by(
        _lora_type, "lora", "lycoris", note="standard is LoRA Settings, lycoris LyCORIS Settings", default="standard"
    ),
    "model_flavour": by(
        _flavour,
        "embeds.system_prompt",
        "hub.base_model",
        note="choose the file of this model in Load Lumina2",
        default="2.0",
    ),
    "pretrained_model_name_or_path": by(
        _base,
        "model.base",
        "hub.base_model",
        note="a path in a models folder is the base; a repository is named in the model card, nothing is downloaded",
        default="",
    ),
    "pretrained_gemma_model_name_or_path": by(_text_encoder, "model.text_encoder", note="if it is a path"),
    "pretrained_vae_model_name_or_path": by(_vae, "model.vae", note="if it is a path"),
    "base_model_precision": by(
        _precision,
        "model.precision",
        note="8 bits of any kind are int8 or fp8, 4 and fewer are nf4",
        default="no_change",
    ),
    "mixed_precision": by(_mixed_precision, "model", note="read together with base_model_precision", default="bf16"),
    "base_model_default_dtype": together("model", "read together with base_model_precision"),
    "quantize_via": ignored("each matrix is quantised as it is read, so neither way costs memory"),
    "text_encoder_1_precision": ignored("the text encoder is in memory only while captions are cached"),
    "quantization_config": ignored("precision of Load Lumina2 has no further settings"),
    "max_train_steps": by(_steps, "train.steps", note="if not 0"),
    "num_train_epochs": by(_epochs, note="length is counted in steps here; 0 says nothing", default=0),
    "train_batch_size": to("train.batch_size", whole, default=4),
    "seed": by(_seed, "train.seed", note="if not negative"),
    "seed_for_each_device": ignored("every draw follows from the seed and the sample's place in the run"),
    "output_dir": by(_output_dir, "train.run_name", "save.name", note="its last folder"),
    "caption_dropout_probability": to("train.caption_dropout", number, default=0.1),
    "gradient_checkpointing": to("train.gradient_checkpointing", flag, default=True),
    "gradient_checkpointing_*": ignored("memory of the Train node decides what is computed again and what is kept"),
    "checkpoint_step_interval": to("checkpoints.checkpoint_step_interval", count, default=500),
    "checkpointing_steps": ignored("an older name of checkpoint_step_interval: use that"),
    "checkpoints_total_limit": by(_kept_checkpoints, "checkpoints.num_checkpoints_kept", default=5),
    "checkpoint_epoch_interval": ignored("checkpoints are counted in steps: checkpoint_step_interval"),
    "checkpointing_*": ignored("every checkpoint is whole, and written under another name until it is"),
    "checkpoints_rolling_total_limit": ignored("there is one kind of checkpoint: num_checkpoints_kept"),
    "resume_from_checkpoint": ignored("the same job under the same run_name always goes on where it stopped"),
    "delete_invalid_checkpoints": ignored("a checkpoint is renamed into place when it is whole"),
    "offload_during_save": ignored("saving takes no memory on the GPU"),
    "disk_low_*": ignored("a full disk stops the run with a message and the last checkpoint stays"),
    "use_ema": by(_use_ema, "checkpoints.use_ema", default=False),
    "ema_decay": to(
        "checkpoints.ema_decay", number, default=0.995, note="the average is float32 here, so no update is lost"
    ),
    "ema_update_interval": to("checkpoints.ema_step_interval", whole),
    "ema_device": to("checkpoints.ema_device", one_of({"cpu": "cpu", "accelerator": "device"})),
    "ema_validation": to(
        "checkpoints.ema_validation",
        one_of({"comparison": "both", "ema_only": "ema", "none": "live"}),
        note="comparison is both, ema_only is ema, none is live",
    ),
    "ema_*": ignored("the average follows ema_decay from the first step, where it leaves less"),
}
