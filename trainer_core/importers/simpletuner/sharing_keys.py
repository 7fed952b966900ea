"""Keys of tracking and the hub, and of everything that has no counterpart here."""

from __future__ import annotations

from collections.abc import Callable

from .rules import Options, Outcome, Rules, by, count, file_name, flag, ignored, one_of, text, to

TRACKERS = {
    **{name: name for name in ("none", "tensorboard", "wandb")},
    "simpletuner": "jsonl",
    "all": "tensorboard",
    "swanlab": "none",
    "comet_ml": "none",
    "custom-tracker": "none",
}


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
        ("num_processes", "num_machines", "accelerate_*"),
        ignored("accelerate launch says how many GPUs train together"),
    ),
    **dict.fromkeys(
        ("deepspeed_*", "fsdp_*", "context_parallel_*"),
        ignored("every GPU holds the whole model, which is small enough"),
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
