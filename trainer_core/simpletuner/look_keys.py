"""Keys of validation, tracking, the hub, and of everything that has no counterpart here."""

from __future__ import annotations

from collections.abc import Callable

from .rules import Options, Outcome, Rules, by, count, file_name, flag, ignored, lines, number, one_of, text, to, whole

SIDE = 16
"""Pixels that a validation picture's sides are multiples of."""
TRACKERS = {
    **{name: name for name in ("none", "tensorboard", "wandb")},
    "simpletuner": "jsonl",
    "all": "tensorboard",
    "swanlab": "none",
    "comet_ml": "none",
    "custom-tracker": "none",
}


def has_prompts(options: Options) -> bool:
    """Whether validation pictures are drawn."""
    return bool(lines(text(options, "validation_prompt"))) and not flag(options, "validation_disable")


def _prompt(options: Options, key: str) -> Outcome:
    prompt = " ".join(lines(text(options, key)).split("\n"))
    return Outcome(values={"validation.prompts": prompt}) if prompt else Outcome(note="empty")


def _resolution(options: Options, key: str) -> Outcome:
    first, *others = [part.strip().lower() for part in text(options, key).split(",")]
    try:
        width, height = (float(side) for side in (first if "x" in first else f"{first}x{first}").split("x"))
        rounded = [max(64, round(side / SIDE) * SIDE) for side in (width, height)]
    except (ValueError, OverflowError):
        raise options.error(key, 'a size such as "1024x1024"') from None
    notes = ["one size is drawn: the first"] if others else []
    notes += [f"the nearest multiples of {SIDE}, at least 64"] if rounded != [width, height] else []
    values = {"validation.width": rounded[0], "validation.height": rounded[1]}
    return Outcome(values=values, note="; ".join(notes))


def _seed(options: Options, key: str) -> Outcome:
    value = options.get(key)
    source = key if value is not None else "seed"
    if options.get(source) is None or whole(options, source) < 0:
        return Outcome(note="no seed is written: 42 is taken")
    return Outcome(values={"validation.seed": whole(options, source)}, note="" if source == key else "as seed")


def _guidance_rescale(options: Options, key: str) -> Outcome:
    if number(options, key) == 0:
        return Outcome(note="0 changes nothing")
    return Outcome(note="not mapped yet; in SimpleTuner it has no effect on Lumina2")


def _unconditional(options: Options, key: str) -> Outcome:
    if flag(options, key):
        return Outcome(note="always so: no further picture is drawn of the empty prompt")
    return Outcome(note="no further picture is drawn of the empty prompt; guidance is not meant by it")


def _library(options: Options, key: str) -> Outcome:
    if not options.get(key) or not text(options, key) or text(options, key).lower() == "false":
        return Outcome(note="off")
    return Outcome(note="prompt libraries are not mapped yet: write prompts of Validation Prompts, one a line")


def _evaluation(options: Options, key: str) -> Outcome:
    if one_of({"none": True, "clip": False})(options, key):
        return Outcome(note="off")
    return Outcome(note="scoring pictures by CLIP is not mapped yet")


def _report_to(options: Options, key: str) -> Outcome:
    name = text(options, key).strip().lower() or "none"
    tracker = one_of(TRACKERS)(options, key)
    if tracker == "none":
        is_off = name == "none"
        return Outcome(note="off: losses are in log.jsonl of the run" if is_off else "not offered: choose in Tracking")
    note = "one tracker can be chosen" if name == "all" else ""
    return Outcome(values={"tracking.report_to": tracker}, note=note)


def _name(target: str, fallback: str) -> Callable[[Options, str], Outcome]:
    def convert(options: Options, key: str) -> Outcome:
        wanted = text(options, key)
        name = file_name(wanted, fallback)
        note = "" if name == wanted else "letters, digits, '.', '-' and '_' are allowed"
        return Outcome(values={target: name}, note=note)

    return convert


def _push(options: Options, key: str) -> Outcome:
    if not flag(options, "push_to_hub"):
        note = "off" if not flag(options, key) else "push_to_hub is off, on which it depends"
        return Outcome(note=note)
    if key == "push_to_hub":
        return Outcome(values={"hub.push" if not _pushes_checkpoints(options) else "hub": "end"})
    return Outcome(values={"hub.push": "checkpoints"}) if _pushes_checkpoints(options) else Outcome(note="off")


def _pushes_checkpoints(options: Options) -> bool:
    return flag(options, "push_checkpoints_to_hub") and count(options, "checkpoint_step_interval") > 0


def _repo_id(options: Options, key: str) -> Outcome:
    return Outcome(values={"hub.repo_id": text(options, key) or text(options, "tracker_project_name")})


VALIDATION_KEYS: Rules = {
    "validation_prompt": by(_prompt, "validation.prompts"),
    "validation_negative_prompt": to(
        "validation.negative_prompt", lambda o, k: lines(text(o, k)), default="blurry, cropped, ugly"
    ),
    "validation_guidance": to("validation.guidance_scale", number, default=7.5),
    "validation_num_inference_steps": to("validation.num_inference_steps", whole, default=30),
    "validation_resolution": by(
        _resolution, "validation.width", "validation.height", note="the first size, on a grid of 16", default="256"
    ),
    "validation_seed": by(_seed, "validation.seed", note="seed if not written", default=None),
    "validation_step_interval": to("validation.every_num_steps", count, default=100),
    "validation_disable": by(
        lambda options, key: Outcome(note="no validation pictures" if flag(options, key) else "off"),
        note="true leaves Validation Prompts out",
    ),
    "validation_disable_unconditional": by(
        _unconditional, note="no further picture is drawn of the empty prompt; guidance is not meant by it"
    ),
    "validation_guidance_rescale": by(_guidance_rescale, note="not mapped yet; no effect on Lumina2 in SimpleTuner"),
    "validation_prompt_library": by(_library, note="prompt libraries are not mapped yet"),
    "user_prompt_library": by(_library, note="prompt libraries are not mapped yet"),
    "validation_epoch_interval": ignored("validation is counted in steps: validation_step_interval"),
    "validate_after_*": ignored("the first validation is after validation_step_interval steps"),
    "validation_on_startup": ignored("Validate draws the model without an adapter, before or after a run"),
    "num_validation_images": ignored("one picture a prompt: repeat a prompt for more"),
    "validation_seed_source": ignored("noise is drawn on the CPU, so that KSampler draws the same picture"),
    "validation_randomize": ignored("the same seed each time, so that pictures can be compared"),
    "validation_noise_scheduler": ignored("Euler with shift 6, as KSampler; see schedule of Validation Prompts"),
    "validation_lycoris_strength": ignored("pictures are drawn at strength 1; Validate has strength"),
    "validation_adapter_*": ignored("Validate draws with any adapter"),
    "validation_preview*": ignored("pictures are shown on the Train node when they are finished"),
    "validation_image_*": ignored("pictures are png"),
    "validation_method": ignored("pictures are drawn by the trainer itself"),
    "validation_multigpu": ignored("pictures are drawn by the first GPU"),
    "validation_guidance_skip_*": ignored("skipping layers is not offered"),
    "validation_torch_compile*": ignored("what is fastest is chosen by the machine"),
    "disable_benchmark": ignored("Validate draws the model without an adapter, before or after a run"),
    "evaluation_type": by(_evaluation, note="scoring pictures by CLIP is not mapped yet"),
    "pretrained_evaluation_model_name_or_path": ignored("scoring pictures by CLIP is not mapped yet"),
    "eval_*": ignored("loss on held-out pictures is not mapped yet"),
    "num_eval_images": ignored("loss on held-out pictures is not mapped yet"),
}
SHARING_KEYS: Rules = {
    "report_to": by(
        _report_to, "tracking.report_to", note="simpletuner is jsonl, all is tensorboard; others are not offered"
    ),
    "tracker_project_name": by(
        _name("tracking.project_name", "lumina2"), "tracking.project_name", default="simpletuner"
    ),
    "tracker_run_name": by(_name("tracking.run_name", ""), "tracking.run_name"),
    "tracker_image_layout": ignored("each prompt has its own row of pictures"),
    "logging_dir": ignored("trackers write into the run folder"),
    "push_to_hub": by(_push, "hub.push", note="end"),
    "push_checkpoints_to_hub": by(_push, "hub.push", note="checkpoints"),
    "push_to_hub_background": ignored("always so"),
    "hub_model_id": by(_repo_id, "hub.repo_id", note="tracker_project_name if not written", default=""),
    "model_card_private": to("hub.private", flag, default=True),
    "model_card_safe_for_work": to("hub.not_for_all_audiences", lambda o, k: not flag(o, k), note="the opposite"),
    "model_card_note": to("hub.note", text),
    "publishing_config": ignored("the hub is the only place that results are sent to"),
}
OTHER_KEYS: Rules = {
    "i_know_what_i_am_doing": ignored("no check of this pack can be switched off"),
    "allow_tf32": ignored("matrix products are in bf16; float32 stays exact"),
    "disable_tf32": ignored("matrix products are in bf16; float32 stays exact"),
    "attention_mechanism": ignored("PyTorch's own attention is taken, in the fastest way this machine has"),
    "sageattention_*": ignored("PyTorch's own attention is taken"),
    "fuse_qkv_projections": ignored("q, k and v are one matrix always"),
    "dynamo_*": ignored("what is fastest is chosen by the machine"),
    **dict.fromkeys(
        ("ramtorch*", "enable_group_offload", "group_offload_*", "offload_*", "musubi_*"),
        ignored("memory of the Train node moves blocks to host memory where the GPU is too small"),
    ),
    **dict.fromkeys(
        ("deepspeed_*", "fsdp_*", "context_parallel_*", "accelerate_*", "num_processes", "num_machines"),
        ignored("one GPU trains a run"),
    ),
    **dict.fromkeys(
        ("crepa_*", "layersync_*", "twinflow_*", "distillation_*", "diffusion_blocks_*", "nextlat_*"),
        ignored("further losses are not offered"),
    ),
    "webhook_*": ignored("events are on ComfyUI's websocket, and lines in log.jsonl"),
    "post_*": ignored("no program is started by a run"),
    "controlnet*": ignored("ControlNet is not offered for Lumina2, as in SimpleTuner"),
    "tread_config": ignored("TREAD is not offered for Lumina2, as in SimpleTuner"),
}
