"""What measurements of the held-out loss say, and what is left of them after a crash."""

from __future__ import annotations

from pathlib import Path

from lumina2_trainer.trainer_core.run_names import BASE
from lumina2_trainer.trainer_core.validation.held_out_log import (
    HeldOutLine,
    HeldOutLog,
    describe_held_out,
    find_best,
    judge,
)


def line(step: int, *losses: float, weights: str = "live") -> HeldOutLine:
    return HeldOutLine(step=step, weights=weights, losses=dict(zip("abcd", losses, strict=False)))


FALLING = [line(0, 0.5, 0.7, 0.9, weights=BASE), line(10, 0.4, 0.61, 0.8), line(20, 0.35, 0.55, 0.74)]


def test_a_falling_loss_is_no_overfit_and_is_compared_with_the_base() -> None:
    verdict = judge(FALLING, FALLING[-1])
    assert not verdict.is_overfit
    assert verdict.best == FALLING[-1]
    assert verdict.change is not None and round(verdict.change.mean, 4) == -0.1533
    assert "OVERFIT" not in describe_held_out(FALLING)


def test_a_rise_that_is_the_same_for_all_pictures_is_overfit() -> None:
    lines = [*FALLING, line(30, 0.36, 0.562, 0.751)]
    assert judge(lines, lines[-1]).is_overfit
    text = describe_held_out(lines)
    assert "OVERFIT: the held-out loss has risen by 0.0110 +- 0.0025 since step 20" in text
    assert "lowest: 0.5467 at step 20" in text


def test_a_rise_within_its_interval_is_not_overfit() -> None:
    lines = [*FALLING, line(30, 0.33, 0.60, 0.76)]  # up by 0.017 on average, but not for every picture
    assert judge(lines, lines[-1]).rise.mean > 0.01
    assert not judge(lines, lines[-1]).is_overfit


def test_each_kind_of_weights_has_its_own_lowest() -> None:
    lines = [*FALLING, line(20, 0.3, 0.5, 0.7, weights="ema"), line(30, 0.31, 0.511, 0.709, weights="ema")]
    assert find_best(lines) == lines[3]
    assert judge(lines, lines[2]).best == lines[2]
    assert judge(lines, lines[-1]).best == lines[3]
    assert describe_held_out(lines).count("Held-out loss") == 2


def test_what_a_crash_cut_short_is_left_out_and_the_lowest_outlives_a_resume(tmp_path: Path) -> None:
    log = HeldOutLog(path=tmp_path / "held_out.jsonl")
    for of_step in [*FALLING, line(30, 0.36, 0.56, 0.75)]:
        log.append(of_step)
    with log.path.open("a") as file:
        file.write('{"step": 40, "wei')
    assert [of_step.step for of_step in log.read()] == [0, 10, 20, 30]
    log.truncate(10)
    assert log.read() == FALLING  # step 20 is the lowest, and its weights are on disk
    assert HeldOutLog(path=tmp_path / "none").read() == []
