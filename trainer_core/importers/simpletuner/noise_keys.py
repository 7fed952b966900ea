"""Keys of the noise levels that are trained on, and of the loss."""

from __future__ import annotations

from typing import Any

from .rules import Options, Outcome, Rules, by, count, flag, ignored, number, one_of, text, to, together


def _auto_shift(options: Options, key: str) -> Outcome:
    if flag(options, key):
        return Outcome(values={"noise.shift_mode": "auto"})
    return Outcome(note="flow_schedule_shift decides")


def _shift(options: Options, key: str) -> Outcome:
    if flag(options, "flow_schedule_auto_shift"):
        return Outcome(note="flow_schedule_auto_shift takes its place")
    shift = number(options, key)
    if shift <= 0:
        return Outcome(values={"noise.shift_mode": "none"})
    return Outcome(values={"noise.shift_mode": "static", "noise.static_shift": shift})


SAMPLERS = ("flow_custom_timesteps", "flow_use_uniform_schedule", "flow_use_beta_schedule", "flux_fast_schedule")
"""Keys that choose another distribution than the logit-normal, the first that is set counting."""


def _sampler(options: Options) -> str:
    for key in SAMPLERS:
        if key == SAMPLERS[0] and options.get(key):
            return key
        if key != SAMPLERS[0] and flag(options, key):
            return key
    return ""


def _uniform(options: Options, key: str) -> Outcome:
    if _sampler(options) == key:
        return Outcome(values={"noise.timestep_sampling": "uniform"})
    return Outcome(note="off" if not flag(options, key) else f"{_sampler(options)} takes its place")


def _beta_schedule(options: Options, key: str) -> Outcome:
    if _sampler(options) == key:
        return Outcome(values={"noise.timestep_sampling": "beta"})
    return Outcome(note="off" if not flag(options, key) else f"{_sampler(options)} takes its place")


def _when(sampler: str, target: str) -> Any:
    def convert(options: Options, key: str) -> Outcome:
        value = number(options, key)
        if _sampler(options) != sampler:
            return Outcome(note="the chosen distribution of noise levels does not use it")
        return Outcome(values={target: value})

    return convert


def _fast(options: Options, key: str) -> Outcome:
    if _sampler(options) == key:
        levels = "1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25"
        return Outcome(values={"noise.timestep_sampling": "custom", "noise.custom_sigmas": levels})
    return Outcome(note="off" if not flag(options, key) else f"{_sampler(options)} takes its place")


def _custom(options: Options, key: str) -> Outcome:
    value = options.get(key)
    if not value:
        return Outcome(note="empty")
    parts = value if isinstance(value, list) else str(value).strip("[] ").replace(",", " ").split()
    try:
        levels = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise options.error(key, "a list of numbers") from None
    if max(levels) > 1:
        levels = [level / 1000 for level in levels]
    is_in_turn = one_of({"fixed-list": False, "round-robin": True, "": False})(options, "flow_timesteps_mode")
    values = {
        "noise.timestep_sampling": "custom_in_turn" if is_in_turn else "custom",
        "noise.custom_sigmas": ", ".join(f"{level:g}" for level in levels),
    }
    return Outcome(values=values)


def _huber(target: str, parse: Any) -> Any:
    def convert(options: Options, key: str) -> Outcome:
        value = parse(options, key)
        if text(options, "loss_type").strip().lower() == "l2":
            return Outcome(note="loss_type l2 does not use it")
        return Outcome(values={target: value})

    return convert


NOISE_KEYS: Rules = {
    "flow_schedule_auto_shift": by(_auto_shift, "noise.shift_mode", note="true is auto"),
    "flow_schedule_shift": by(
        _shift, "noise.shift_mode", "noise.static_shift", note="unless flow_schedule_auto_shift is on", default=3.0
    ),
    "flow_sigmoid_scale": by(_when("", "noise.logit_scale"), "noise.logit_scale"),
    "flow_use_uniform_schedule": by(_uniform, "noise.timestep_sampling", note="uniform"),
    "flow_use_beta_schedule": by(_beta_schedule, "noise.timestep_sampling", note="beta"),
    "flow_beta_schedule_alpha": by(_when("flow_use_beta_schedule", "noise.beta_alpha"), "noise.beta_alpha"),
    "flow_beta_schedule_beta": by(_when("flow_use_beta_schedule", "noise.beta_beta"), "noise.beta_beta"),
    "flow_custom_timesteps": by(
        _custom, "noise.timestep_sampling", "noise.custom_sigmas", note="numbers above 1 are divided by 1000"
    ),
    "flow_timesteps_mode": together("noise", "read together with flow_custom_timesteps: custom or custom_in_turn"),
    "flux_fast_schedule": by(_fast, "noise.timestep_sampling", "noise.custom_sigmas", note="the same list of levels"),
    "flow_cubic_schedule_weights": ignored("not offered: choose beta in Noise Schedule for a similar shape"),
    "loss_type": to("noise.loss", one_of({"l2": "l2", "huber": "huber", "smooth_l1": "smooth_l1"}), default="l2"),
    "huber_c": by(_huber("noise.loss_delta", number), "noise.loss_delta", note="for huber and smooth_l1", default=0.1),
    "huber_schedule": by(
        _huber(
            "noise.loss_delta_schedule",
            one_of({"snr": "snr", "exponential": "exponential", "constant": "constant"}),
        ),
        "noise.loss_delta_schedule",
        note="for huber and smooth_l1",
        default="snr",
    ),
    "input_perturbation": to("noise.input_perturbation", number),
    "input_perturbation_steps": by(
        lambda options, key: (
            Outcome(values={"noise.input_perturbation_steps": count(options, key)})
            if options.get("input_perturbation") and number(options, "input_perturbation")
            else Outcome(note="input_perturbation is 0")
        ),
        "noise.input_perturbation_steps",
    ),
    **dict.fromkeys(
        ("snr_gamma", "offset_noise", "noise_offset*", "timestep_bias_*", "use_soft_min_snr", "snr_weight"),
        ignored("flow matching does not use it, there or here"),
    ),
    "mixflow_*": ignored("MixFlow is not offered"),
}
