"""Keys of optimizer and learning rate."""

from __future__ import annotations

import math
from typing import Any

from ...training.optim.optimizers import OPTIMIZERS as REGISTRY
from .rules import Options, Outcome, Rules, by, count, flag, ignored, number, one_of, text, to, together, whole
from .run_keys import is_full

OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw_bf16": ("adamw_bf16", ""),
    "optimi-adamw": ("adamw", ""),
    "torch-adamw": ("adamw", ""),
    "bnb-adamw": ("adamw", ""),
    "bnb-adamw-paged": ("adamw", "its state is not paged"),
    "sdnq-adamw": ("adamw8bit", ""),
    "sdnq-adamw+no_quant": ("adamw", ""),
    "bnb-adamw8bit": ("adamw8bit", ""),
    "bnb-adamw8bit-paged": ("adamw8bit", "optimizer_state host of Optimizer is what paging is there"),
    "ao-adamw8bit": ("adamw8bit", ""),
    "ao-adamw4bit": ("adamw8bit", "4 bits are not offered"),
    "ao-adamfp8": ("adamw8bit", "8 bits are integers here"),
    "ao-adamwfp8": ("adamw8bit", "8 bits are integers here"),
    "lion": ("lion", "SimpleTuner itself knows optimi-lion"),
    "optimi-lion": ("lion", ""),
    "bnb-lion": ("lion", ""),
    "bnb-lion8bit": ("lion", "its state is not quantised"),
    "bnb-lion-paged": ("lion", "its state is not paged"),
    "bnb-lion8bit-paged": ("lion", "its state is neither quantised nor paged"),
    "sdnq-lion": ("lion", "its state is not quantised"),
    "optimi-stableadamw": ("stableadamw", ""),
    "prodigy": ("prodigy", "the plain one, with the schedule that is set"),
    "adamw_schedulefree": ("schedulefree", ""),
    "adamw_schedulefree+aggressive": ("schedulefree", "without the aggressive settings"),
    "adamw_schedulefree+no_kahan": ("schedulefree", ""),
    "torch-adafactor": ("adafactor", ""),
    "sdnq-adafactor": ("adafactor", ""),
    "sdnq-came": ("came", ""),
    "muon": ("muon", ""),
    "sdnq-muon": ("muon", "its state is not quantised"),
    "sdnq-muon+quantized_matmul": ("muon", "its products are not quantised"),
    **dict.fromkeys(
        (
            *(f"optimi-{name}" for name in ("adam", "radam", "ranger", "adan", "sgd")),
            *(f"torch-{name}" for name in ("adam", "sgd", "radam", "nadam", "rmsprop", "adagrad", "adadelta")),
            *("torch-adamax", "torch-asgd", "torch-sparseadam", "bnb-adagrad", "bnb-adagrad8bit", "bnb-adam"),
            *(f"bnb-ademamix{ending}" for ending in ("", "8bit", "-paged", "8bit-paged")),
            *("bnb-adam8bit", "soap"),
        ),
        ("adamw", "it is not offered: adamw is taken, check the learning rate"),
    ),
}
"""This pack's optimizer, and in what it differs."""
SCHEDULES: dict[str, tuple[str, str]] = {
    "constant": ("constant", ""),
    "constant_with_warmup": ("constant", ""),
    "linear": ("linear", ""),
    "cosine": ("cosine", "falls once, to the last step; there it starts anew after lr_warmup_steps"),
    "sine": ("cosine", "a sine is not offered: cosine, which falls once, to the last step"),
    "cosine_with_restarts": ("cosine_with_restarts", ""),
    "polynomial": ("polynomial", ""),
}
FALLING = ("linear", "sine", "cosine", "cosine_with_restarts", "polynomial")


def _optimizer(options: Options, key: str) -> Outcome:
    name, note = one_of(OPTIMIZERS)(options, key)
    if not REGISTRY[name].trains_bf16 and is_full(options):
        note = f"{note}; " if note else ""
        return Outcome(values={"train.optimizer": name}, note=f"{note}set precision fp32 in Load Lumina2 for it")
    return Outcome(values={"train.optimizer": name}, note=note)


def _learning_rate(options: Options, key: str) -> Outcome:
    rate = number(options, key)
    size = (count(options, "train_batch_size") or 1) * (count(options, "gradient_accumulation_steps") or 1)
    if flag(options, "lr_scale"):
        factor = math.sqrt(size) if flag(options, "lr_scale_sqrt") else float(size)
        return Outcome(values={"train.learning_rate": rate * factor}, note=f"times {factor:g}, for lr_scale is on")
    return Outcome(values={"train.learning_rate": rate})


def _lr_scheduler(options: Options, key: str) -> Outcome:
    name, note = one_of(SCHEDULES)(options, key)
    return Outcome(values={"optimizer.lr_schedule": name}, note=note)


def _only_for(schedules: tuple[str, ...], target: str, parse: Any) -> Any:
    def convert(options: Options, key: str) -> Outcome:
        value = parse(options, key)
        if text(options, "lr_scheduler").strip().lower() not in schedules:
            return Outcome(note="the chosen lr_scheduler does not use it")
        return Outcome(values={target: value})

    return convert


def _end_ratio(options: Options, key: str) -> float:
    rate = number(options, "learning_rate") if options.get("learning_rate") is not None else 0.0
    return min(1.0, number(options, key) / rate) if rate else 0.0


def _clip_method(options: Options, key: str) -> Outcome:
    if one_of({"norm": True, "value": False})(options, key):
        return Outcome(note="the norm is what is clipped here")
    return Outcome(note="clipping each value is not offered: max_grad_norm limits the norm of the gradient")


def _lacks(options: Options, name: str) -> bool:
    """Whether the chosen optimizer has no such number."""
    kind = REGISTRY[one_of(OPTIMIZERS)(options, "optimizer")[0]]
    return name in ("beta1", "beta2", "epsilon") and getattr(kind, name) is None


def _optimizer_config(options: Options, key: str) -> Outcome:
    known = {"weight_decay": "weight_decay", "eps": "epsilon", "beta1": "beta1", "beta2": "beta2"}
    values: dict[str, Any] = {}
    other = []
    for part in filter(None, (part.strip() for part in text(options, key).split(","))):
        name, _, value = part.partition("=")
        ours = known.get(name.strip(), "")
        if not ours or _lacks(options, ours):
            other.append(name.strip())
            continue
        try:
            values[f"optimizer.{ours}"] = float(value)
        except ValueError:
            raise options.error(key, "name=number with commas between") from None
    return Outcome(values=values, note=f"no setting here: {', '.join(other)}" if other else "")


def _optimizer_number(name: str) -> Any:
    def convert(options: Options, key: str) -> Outcome:
        if options.get(key) is None:
            return Outcome(note="null leaves the optimizer's own")
        if _lacks(options, name):
            return Outcome(note="the chosen optimizer has no such number")
        return Outcome(values={f"optimizer.{name}": number(options, key)})

    return convert


def _offload(options: Options, key: str) -> Outcome:
    is_on = one_of({"none": False, "torchao": True})(options, key)
    name = OPTIMIZERS.get(text(options, "optimizer"), ("", ""))[0]
    if not is_on:
        return Outcome(values={"optimizer.optimizer_state": "device"})
    if name and REGISTRY[name].updates_in_backward:
        return Outcome(values={"optimizer.optimizer_state": "host"})
    return Outcome(note="only adamw8bit and adamw_bf16 can keep their state in host memory")


LEARNING_KEYS: Rules = {
    "optimizer": by(
        _optimizer,
        "train.optimizer",
        note="the one of the same name; those not offered become adamw, and the command says so",
        default="adamw_bf16",
    ),
    "learning_rate": by(_learning_rate, "train.learning_rate", note="times the batch where lr_scale is on"),
    "lr_scale": together("train", "read together with learning_rate"),
    "lr_scale_sqrt": together("train", "read together with lr_scale"),
    "lr_scheduler": by(
        _lr_scheduler,
        "optimizer.lr_schedule",
        note="cosine falls once, to the last step; sine becomes cosine",
        default="constant_with_warmup",
    ),
    "lr_warmup_steps": to("optimizer.num_warmup_steps", count, default=0),
    "lr_num_cycles": by(
        _only_for(("cosine_with_restarts",), "optimizer.lr_num_cycles", whole), "optimizer.lr_num_cycles"
    ),
    "lr_power": by(_only_for(("polynomial",), "optimizer.lr_power", number), "optimizer.lr_power", default=0.8),
    "lr_end": by(
        _only_for(FALLING, "optimizer.lr_end_ratio", _end_ratio),
        "optimizer.lr_end_ratio",
        note="as a share of learning_rate",
    ),
    "gradient_accumulation_steps": to("optimizer.gradient_accumulation_steps", whole),
    "max_grad_norm": to("optimizer.max_grad_norm", number, note="of the norm of the gradient"),
    "grad_clip_method": by(_clip_method, note="the norm is what is clipped here"),
    "optimizer_beta1": by(_optimizer_number("beta1"), "optimizer.beta1"),
    "optimizer_beta2": by(_optimizer_number("beta2"), "optimizer.beta2"),
    "adam_weight_decay": to("optimizer.weight_decay", number, note="norms and biases are not decayed here"),
    "adam_epsilon": by(_optimizer_number("epsilon"), "optimizer.epsilon"),
    "optimizer_config": by(
        _optimizer_config,
        *(f"optimizer.{name}" for name in ("weight_decay", "epsilon", "beta1", "beta2")),
        note="weight_decay, eps, beta1 and beta2; others have no setting",
    ),
    "optimizer_cpu_offload_method": by(
        _offload, "optimizer.optimizer_state", note="torchao is host, for adamw8bit and adamw_bf16"
    ),
    "optimizer_offload_gradients": ignored("full training frees each gradient within the backward pass anyway"),
    "optimizer_release_gradients": ignored("full training frees each gradient within the backward pass anyway"),
    "fuse_optimizer": ignored("full training updates each weight within the backward pass anyway"),
    "gradient_precision": ignored("gradients of an adapter are float32"),
    "set_grads_to_none": ignored("always so"),
}
