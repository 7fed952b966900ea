"""What a run that goes on writes anew and makes up for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from lumina2_trainer.nodes.run_state import draws_pictures
from lumina2_trainer.trainer_core.errors import StopTraining
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings

from ..training_setup import PROMPTS, Setup
from .test_train import StopAfter


def with_workflow(setup: Setup, workflow: str) -> Setup:
    return replace(setup, context=replace(setup.context, workflow=workflow))


def job_of(setup: Setup) -> dict[str, Any]:
    return json.loads((setup.context.runs_dir / "run" / "job.json").read_text("utf-8"))


def test_job_and_workflow_are_those_the_run_was_last_trained_with(
    fresh: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = fresh.context.runs_dir / "run"
    with pytest.raises(StopTraining):
        with_workflow(fresh, '{"1": {}}').with_stop(StopAfter(2)).train()
    fingerprint = job_of(fresh)["fingerprint"]
    assert not draws_pictures(run_dir)
    with_workflow(fresh, '{"2": {}}').train(validation=PROMPTS)
    assert draws_pictures(run_dir)
    assert job_of(fresh)["fingerprint"] == fingerprint
    assert (run_dir / "workflow.json").read_text("utf-8") == '{"2": {}}'
    with_workflow(fresh, '{"3": {}}').train(validation=PROMPTS)
    assert "pictures of other prompts" not in caplog.text
    with_workflow(fresh, '{"3": {}}').train(validation=replace(PROMPTS, prompts="a red square"))
    assert job_of(fresh)["validation"]["prompts"] == PROMPTS.prompts, "a finished run was drawn with these"
    assert (run_dir / "workflow.json").read_text("utf-8") == '{"2": {}}'


@pytest.mark.parametrize("step", [4, 6])
def test_pictures_that_a_stop_prevented_are_drawn_when_the_run_goes_on(fresh: Setup, step: int) -> None:
    validation = replace(PROMPTS, every_num_steps=2)
    checkpoint_dir = fresh.context.runs_dir / "run" / "checkpoints" / f"step-{step:06d}"
    samples_dir = fresh.context.runs_dir / "run" / "samples"
    with pytest.raises(StopTraining):
        fresh.with_stop(checkpoint_dir.exists).train(
            validation=validation, checkpoints=CheckpointSettings(checkpoint_step_interval=2)
        )
    assert not (samples_dir / checkpoint_dir.name).exists(), "it was stopped too late"
    events: list[Event] = []
    fresh.with_events(events).train(validation=validation)
    assert sorted(path.name for path in samples_dir.iterdir()) == ["step-000002", "step-000004", "step-000006"]
    drawn = [event.data["step"] for event in events if event.kind == "validation"]
    assert drawn == [number for number in (4, 6) if number >= step], "and none twice"


def test_pictures_that_were_drawn_are_not_drawn_again(fresh: Setup) -> None:
    validation = replace(PROMPTS, every_num_steps=2)
    with pytest.raises(StopTraining):
        fresh.with_stop((fresh.context.runs_dir / "run" / "samples" / "step-000004").exists).train(
            validation=validation
        )
    events: list[Event] = []
    fresh.with_events(events).train(validation=validation)
    assert [event.data["step"] for event in events if event.kind == "validation"] == [6]
