"""Keys of scheduled sampling: the settings of Rollout."""

from __future__ import annotations

from collections.abc import Callable

from .rules import Options, Outcome, Parse, Rules, by, count, flag, ignored, number, one_of, text, to

PREFIX = "scheduled_sampling_"
OFFSET, RAMP, REFLEXFLOW = f"{PREFIX}max_step_offset", f"{PREFIX}ramp_steps", f"{PREFIX}reflexflow"
CONSTANT, START, END = f"{PREFIX}probability", f"{PREFIX}prob_start", f"{PREFIX}prob_end"


def why_not_rolled(options: Options) -> str:
    """Why no sample is rolled; empty if some are."""
    if not count(options, OFFSET):
        return f"{OFFSET} is 0"
    if not count(options, RAMP):
        return "" if number(options, CONSTANT) else f"{CONSTANT} is 0 and there is no ramp, so nothing would be rolled"
    return "" if _first_probability(options) or number(options, END) else "every probability is 0"


def _first_probability(options: Options) -> float:
    """Of the ramp; 0 means the constant one there."""
    return number(options, START) or number(options, CONSTANT)


def _probability(options: Options, key: str) -> Outcome:
    value = number(options, key)
    if count(options, RAMP):
        return Outcome(note=f"{RAMP} is set, so {START} and {END} count")
    return Outcome(values={"rollout.probability": value})


def _probability_start(options: Options, key: str) -> Outcome:
    first = _first_probability(options)
    note = "" if number(options, key) == first else f"0 means {CONSTANT} there"
    return Outcome(values={"rollout.probability_start": first}, note=note)


def _ramped(convert: Callable[[Options, str], Outcome]) -> Callable[[Options, str], Outcome]:
    """Only where there is a ramp."""

    def checked(options: Options, key: str) -> Outcome:
        outcome = convert(options, key)
        return outcome if count(options, RAMP) else Outcome(note=f"{RAMP} is 0, so it is not used, as there")

    return checked


def _when_ramped(target: str, parse: Parse) -> Callable[[Options, str], Outcome]:
    return _ramped(lambda options, key: Outcome(values={target: parse(options, key)}))


def _uses_reflexflow(options: Options) -> bool:
    """Unset means on, for a model of flow matching."""
    is_unset = options.get(REFLEXFLOW) is None or options.get(REFLEXFLOW) == "auto"
    return is_unset or flag(options, REFLEXFLOW)


def _reflexflow(options: Options, key: str) -> Outcome:
    is_on = _uses_reflexflow(options)
    note = "of rolled samples alone: there it changes the loss of all; false is the plain loss" if is_on else ""
    return Outcome(values={"rollout.use_reflexflow": is_on}, note=note)


def _when_reflexflow(target: str) -> Callable[[Options, str], Outcome]:
    def convert(options: Options, key: str) -> Outcome:
        value = number(options, key)
        return Outcome(values={target: value}) if _uses_reflexflow(options) else Outcome(note=f"{REFLEXFLOW} is off")

    return convert


def _sampler(options: Options, key: str) -> Outcome:
    text(options, key)
    note = "for flow matching it is ignored there too, and each unit of the offset is one Euler step: euler is faster"
    return Outcome(values={"rollout.sampler": "euler_unit"}, note=note)


ROLLOUT_KEYS: Rules = {
    OFFSET: by(
        lambda options, key: Outcome(values={"rollout.max_step_offset": count(options, key)}),
        "rollout.max_step_offset",
        note="0 is no Rollout",
        default=0,
    ),
    f"{PREFIX}strategy": to(
        "rollout.strategy",
        one_of({name: name for name in ("uniform", "biased_early", "biased_late")}),
        note="offsets from 1, there from 0",
    ),
    CONSTANT: by(_probability, "rollout.probability", note="without a ramp; 0 is no Rollout", default=0.0),
    START: by(
        _ramped(_probability_start),
        "rollout.probability_start",
        note=f"with a ramp; {CONSTANT} where it is 0",
        default=0.0,
    ),
    END: by(
        _when_ramped("rollout.probability_end", number), "rollout.probability_end", note="with a ramp", default=0.5
    ),
    RAMP: to("rollout.num_ramp_steps", count),
    f"{PREFIX}start_step": by(
        _when_ramped("rollout.start_step", lambda options, key: max(1, count(options, key))),
        "rollout.start_step",
        note="with a ramp, at least 1",
    ),
    f"{PREFIX}ramp_shape": by(
        _when_ramped("rollout.ramp_shape", one_of({"linear": "linear", "cosine": "cosine"})),
        "rollout.ramp_shape",
        note="with a ramp",
    ),
    f"{PREFIX}sampler": by(
        _sampler, "rollout.sampler", note="euler_unit, which is what flow matching gets there", default="unipc"
    ),
    f"{PREFIX}order": ignored("for flow matching it is ignored there too"),
    REFLEXFLOW: by(_reflexflow, "rollout.use_reflexflow", note="on if not written, as there", default=None),
    f"{REFLEXFLOW}_alpha": by(
        _when_reflexflow("rollout.reflexflow_alpha"),
        "rollout.reflexflow_alpha",
        note="relative to the mean difference here, so it acts much more",
    ),
    f"{REFLEXFLOW}_beta1": by(_when_reflexflow("rollout.reflexflow_beta1"), "rollout.reflexflow_beta1"),
    f"{REFLEXFLOW}_beta2": by(_when_reflexflow("rollout.reflexflow_beta2"), "rollout.reflexflow_beta2"),
}
