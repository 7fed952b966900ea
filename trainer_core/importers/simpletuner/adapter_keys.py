"""Keys of the adapter: those of LoRA in the configuration, and those of LyCORIS in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from ...adapters.targets import OVERRIDE_LIMITS, TARGETS
from .rules import Options, Outcome, Parse, Rules, by, flag, ignored, number, one_of, text, to, whole
from .run_keys import is_full, is_lycoris

MAX_RANK = int(OVERRIDE_LIMITS["rank"][1])
ALGORITHMS = {
    "lora": "locon",
    "locon": "locon",
    **{name: name for name in ("loha", "lokr", "dylora", "glora", "full", "diag-oft", "boft")},
}
LINEARS = {
    "to_q": "attention.qkv",
    "to_k": "attention.qkv",
    "to_v": "attention.qkv",
    "to_qkv": "attention.qkv",
    "to_out.0": "attention.out",
    "linear_1": "feed_forward.w1",
    "linear_2": "feed_forward.w2",
    "linear_3": "feed_forward.w3",
    "norm1.linear": "adaLN_modulation.1",
}
"""Endings of names of layers in diffusers' Lumina2, and of ours. q, k and v are one matrix here."""
ATTENTION, FEED_FORWARD, BLOCK = "Attention", "LuminaFeedForward", "Lumina2TransformerBlock"
CLASSES = {ATTENTION: ATTENTION, FEED_FORWARD: FEED_FORWARD, "FeedForward": FEED_FORWARD, BLOCK: BLOCK}
"""Classes of modules in presets of LyCORIS. "FeedForward" is in SimpleTuner's examples, but not in Lumina2."""
PATTERNS = {ATTENTION: r".*\.attention\..*", FEED_FORWARD: r".*\.feed_forward\..*"}
OVERRIDES = {"linear_dim": "rank", "dim": "rank", "linear_alpha": "alpha", "alpha": "alpha", "factor": "factor"}


def _lora(convert: Callable[[Options, str], Outcome]) -> Callable[[Options, str], Outcome]:
    """Only where a LoRA is trained."""

    def checked(options: Options, key: str) -> Outcome:
        if is_full(options):
            return Outcome(note="model_type is full, there is no adapter")
        if is_lycoris(options):
            return Outcome(note="lora_type is lycoris, so the file of lycoris_config counts")
        return convert(options, key)

    return checked


def _to(target: str, parse: Parse, note: str = "") -> Callable[[Options, str], Outcome]:
    return _lora(lambda options, key: Outcome(values={target: parse(options, key)}, note=note))


def _alpha(options: Options, key: str) -> Outcome:
    if options.get(key) is None:
        return Outcome(values={"train.alpha": float(whole(options, "lora_rank"))}, note="equal to lora_rank")
    return Outcome(values={"train.alpha": number(options, key)})


def _init(options: Options, key: str) -> Outcome:
    names = {"default": "default", "true": "default", "gaussian": "gaussian", "pissa": "pissa", "olora": "olora"}
    chosen = one_of({**names, "loftq": ""})(options, key)
    if text(options, "init_lora"):
        return Outcome(note="init_lora brings its own values")
    if not chosen:
        return Outcome(values={"lora.init": "default"}, note="loftq is not offered")
    return Outcome(values={"lora.init": chosen})


def _dropout(options: Options, key: str) -> Outcome:
    return Outcome(values={"lora.dropout": number(options, key)})


def _start_from(options: Options, key: str) -> Outcome:
    value = text(options, key)
    if is_full(options):
        return Outcome(note="model_type is full, there is no adapter")
    if not value:
        return Outcome(note="empty")
    name = PurePosixPath(value.replace("\\", "/")).name
    if is_lycoris(options):
        note = "put the file into models/loras; it must have ComfyUI's names"
        return Outcome(values={"lycoris.start_from": name}, note=note)
    note = "put the file into models/loras; q, k and v are one matrix here, so three times its rank is needed for them"
    return Outcome(values={"lora.start_from": name}, note=note)


def _targets(options: Options, key: str) -> Outcome:
    names = options.get(key)
    if isinstance(names, str):
        try:
            names = json.loads(names)
        except ValueError:
            names = [name.strip() for name in names.split(",")]
    if not names:
        return Outcome(values={"lora.targets": "attention"}, note="attention alone, as there")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise options.error(key, "a list of names of layers")
    endings = {ending: LINEARS.get(ending) for ending in names}
    unknown = [name for name, ours in endings.items() if ours is None]
    ours = tuple(sorted({ending for ending in endings.values() if ending}))
    if not ours:
        return Outcome(values={"lora.targets": "attention"}, note=f"no layer of Lumina2 is called {', '.join(unknown)}")
    note = f"left out, no layer of Lumina2: {', '.join(unknown)}" if unknown else ""
    if "attention.qkv" in ours and not {"to_qkv"} & set(names) and not {"to_q", "to_k", "to_v"} <= set(names):
        note = "; ".join(filter(None, (note, "q, k and v are one matrix here, so all three are adapted")))
    known = next((name for name, group in TARGETS.items() if group and set(group) == set(ours)), "")
    if known:
        return Outcome(values={"lora.targets": known}, note=note)
    pattern = rf"(layers|noise_refiner|context_refiner)\.\d+\.({'|'.join(o.replace('.', chr(92) + '.') for o in ours)})"
    return Outcome(values={"lora.targets": "pattern", "lora.target_pattern": pattern}, note=note)


def _format(options: Options, key: str) -> Outcome:
    is_both = one_of({"diffusers": True, "comfyui": False})(options, key)
    if is_full(options):
        return Outcome(note="model_type is full: choose the layout in Save Model")
    if is_both and (is_lycoris(options) or flag(options, "use_dora")):
        return Outcome(values={"save.format": "comfyui"}, note="diffusers does not load this kind of adapter")
    if is_both:
        return Outcome(values={"save.format": "both"}, note="the file for ComfyUI is written beside it")
    return Outcome(values={"save.format": "comfyui"})


def _lycoris_file(options: Options, key: str) -> Outcome:
    if is_lycoris(options):
        return Outcome(values={"lycoris": ""}, note="read, see below")
    return Outcome(note="lora_type is not lycoris")


LORA_KEYS: Rules = {
    "lora_rank": by(_to("train.rank", whole), "train.rank", default=16),
    "lora_alpha": by(_lora(_alpha), "train.alpha", note="lora_rank if not written", default=None),
    "lora_dropout": by(_lora(_dropout), "lora.dropout", default=0.1),
    "lora_init_type": by(_lora(_init), "lora.init", note="loftq becomes default"),
    "use_dora": by(_to("lora.use_dora", flag), "lora.use_dora"),
    "peft_lora_target_modules": by(
        _lora(_targets), "lora.targets", "lora.target_pattern", note="attention if not written", default=None
    ),
    "init_lora": by(_start_from, "lora.start_from", "lycoris.start_from", note="the file's name in models/loras"),
    "init_lora_step": ignored("the schedule starts with the run"),
    "init_lora_ema": ignored("the average starts with the run"),
    "lora_format": by(_format, "save.format", note="diffusers becomes both, so that ComfyUI can load the result"),
    "lycoris_config": by(_lycoris_file, "lycoris", note="its keys have a table of their own"),
    "peft_lora_mode": ignored("standard is what there is; SingLoRA is not offered"),
    "singlora_*": ignored("SingLoRA is not offered"),
    "slider_lora_target": ignored("slider LoRAs are not offered"),
    "assistant_lora_*": ignored("assistant LoRAs are not offered"),
    "init_lokr_norm": ignored("a LoKr starts without effect"),
    "layer_freeze_strategy": ignored("full training trains all weights"),
    "train_text_encoder": ignored("the text encoder is not trained, as in SimpleTuner"),
}


def _algorithm(options: Options) -> str:
    return one_of(ALGORITHMS)(options, "algo")


def _keeps_whole(options: Options) -> bool:
    """Whether a LoKr is not split by rank: when told so, or by a rank that no matrix has."""
    is_large = options.get("linear_dim") is not None and whole(options, "linear_dim") > MAX_RANK
    return flag(options, "full_matrix") or is_large


def _rank(options: Options, key: str) -> Outcome:
    rank = whole(options, key)
    if _algorithm(options) == "lokr" and _keeps_whole(options):
        return Outcome(note="a LoKr with full_matrix has no rank")
    if _algorithm(options) == "full":
        return Outcome(note="a full difference has no rank")
    if rank > MAX_RANK:
        return Outcome(values={"train.rank": MAX_RANK}, note=f"{MAX_RANK} is the most here")
    return Outcome(values={"train.rank": rank})


def _for(algorithms: tuple[str, ...], target: str, parse: Parse) -> Callable[[Options, str], Outcome]:
    def convert(options: Options, key: str) -> Outcome:
        if _algorithm(options) not in algorithms:
            return Outcome(note=f"algo {text(options, 'algo')} does not use it")
        return Outcome(values={target: parse(options, key)})

    return convert


def _multiplier(options: Options, key: str) -> Outcome:
    if number(options, key) == 1:
        return Outcome(note="1 changes nothing")
    return Outcome(note="training is at strength 1: set the strength where the adapter is loaded")


def _preset(options: Options, key: str) -> Outcome:
    preset = options.get(key)
    if preset is not None and not isinstance(preset, Mapping):
        raise options.error(key, 'an object such as {"target_module": ["Attention"]}')
    preset = preset or {"target_module": [ATTENTION]}
    wanted, per_class = preset.get("target_module") or [ATTENTION], preset.get("module_algo_map") or {}
    is_list = isinstance(wanted, list) and all(isinstance(name, str) for name in wanted)
    if not is_list or not isinstance(per_class, Mapping):
        raise options.error(key, "a list of classes in target_module and an object in module_algo_map")
    classes = {CLASSES[name] for name in wanted if name in CLASSES}
    notes = [f"no class of Lumina2: {name}" for name in wanted if name not in CLASSES]
    notes += [f"no setting here: {name}" for name in preset if name not in ("target_module", "module_algo_map")]
    if "FeedForward" in wanted:
        notes.append("FeedForward is trained here; in SimpleTuner that name matches nothing of Lumina2")
    lines = []
    for name, numbers in per_class.items():
        if CLASSES.get(name) in PATTERNS and isinstance(numbers, Mapping) and CLASSES[name] in _covered(classes):
            line, note = _override(options, CLASSES[name], numbers)
            lines += [line] if line else []
            notes += [note] if note else []
        else:
            notes.append(f"no layers of their own here: {name}")
    values = {**_layers(classes), **({"lycoris.overrides": "\n".join(lines)} if lines else {})}
    return Outcome(values=values, note="; ".join(notes))


def _covered(classes: set[str]) -> set[str]:
    return {ATTENTION, FEED_FORWARD} if BLOCK in classes or not classes else classes


def _layers(classes: set[str]) -> dict[str, Any]:
    if BLOCK in classes:
        return {"lycoris.targets": "attention_mlp_modulation"}
    if classes == {FEED_FORWARD}:
        return {"lycoris.targets": "pattern", "lycoris.target_pattern": r".*\.feed_forward\.w[123]"}
    return {"lycoris.targets": "attention_mlp" if FEED_FORWARD in classes else "attention"}


def _override(options: Options, name: str, numbers: Mapping[str, Any]) -> tuple[str, str]:
    """A line of overrides for what differs from the adapter as a whole, and what it leaves out."""
    algorithm = _algorithm(options)
    parts, left_out = [], []
    for key, value in numbers.items():
        ours, is_number = OVERRIDES.get(key), isinstance(value, (int, float)) and not isinstance(value, bool)
        usual = options.get({"rank": "linear_dim", "alpha": "linear_alpha"}.get(str(ours), str(ours)))
        if ours is None or (ours == "factor" and algorithm != "lokr") or not is_number:
            left_out += [] if (key, value) == ("algo", options.get("algo")) else [key]
        elif value != usual and not (ours == "rank" and value > MAX_RANK):
            parts.append(f"{ours}={value}")
    note = f"the same for all layers here: {', '.join(left_out)} of {name}" if left_out else ""
    return (" ".join((PATTERNS[name], *parts)) if parts else "", note)


LYCORIS_KEYS: Rules = {
    "algo": to("lycoris.algorithm", one_of(ALGORITHMS), note="lora is locon; ia3 and tlora are not offered"),
    "linear_dim": by(_rank, "train.rank", note="above 512 a LoKr is full_matrix"),
    "linear_alpha": to("train.alpha", number),
    "multiplier": by(_multiplier, note="training is at strength 1"),
    "full_matrix": by(
        _for(("lokr",), "lycoris.full_matrix", lambda options, key: _keeps_whole(options)),
        "lycoris.full_matrix",
        note="of lokr",
        default=False,
    ),
    "factor": by(_for(("lokr",), "lycoris.factor", whole), "lycoris.factor", note="of lokr", default=-1),
    "decompose_both": by(_for(("lokr",), "lycoris.decompose_both", flag), "lycoris.decompose_both", note="of lokr"),
    "block_size": by(_for(("dylora",), "lycoris.block_size", whole), "lycoris.block_size", note="of dylora"),
    "constraint": by(
        _for(("diag-oft", "boft"), "lycoris.constraint", number), "lycoris.constraint", note="of diag-oft and boft"
    ),
    "rescaled": by(_for(("boft",), "lycoris.rescaled", flag), "lycoris.rescaled", note="of boft"),
    "dora_wd": by(
        _for(("lokr", "loha", "locon"), "lycoris.weight_decompose", flag),
        "lycoris.weight_decompose",
        note="of lokr, loha and locon",
    ),
    "dropout": to("lycoris.dropout", number),
    "rank_dropout": to("lycoris.rank_dropout", number),
    "module_dropout": to("lycoris.module_dropout", number),
    "apply_preset": by(
        _preset,
        "lycoris.targets",
        "lycoris.target_pattern",
        "lycoris.overrides",
        note="classes of target_module, and numbers of module_algo_map; attention if not written",
        default=None,
    ),
    "use_tucker": ignored("for convolutions, which Lumina2 does not have"),
    "use_scalar": ignored("a learned factor is not offered: alpha scales the adapter"),
    "train_norm": ignored("norms are not adapted"),
    "wd_on_output": ignored("the length of each row is what is learned"),
    "bypass_mode": ignored("the update is added to the weight, or beside it where the base is quantised"),
    "unbalanced_factorization": ignored("the smaller factor is the output's, as by default"),
    "tlora_*": ignored("T-LoRA is not offered"),
}
