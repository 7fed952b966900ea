"""CLIP scores of a run's pictures: in the log, in events, on the nodes, and refused before weights load."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from lumina2_trainer.nodes.run_state import read_state
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.stages import validate
from lumina2_trainer.trainer_core.validation.clip_score import clip_scores
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings

from ..training_setup import PROMPTS, Setup
from ..validation.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.train

SCORED = replace(PROMPTS, every_num_steps=3, draw_unconditional=True, draw_base=True, clip_model="tiny_clip")


@pytest.fixture
def with_clip(fresh: Setup) -> Setup:
    folder = fresh.context.roots[0] / "tiny_clip"
    if not folder.exists():
        write_tiny_clip(folder)
    return fresh


def test_scores_are_in_log_event_and_result_and_training_stays_the_same(with_clip: Setup, tmp_path: Path) -> None:
    events: list[Event] = []
    result = with_clip.with_events(events).train(validation=SCORED)
    run_dir = Path(result.adapter.run_dir)
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "clip_score" in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert scored[-1]["clip_score"].keys() == {
        "live",
        "live_margin",
        "live_change",
        "live_change_margin",
        "base",
        "base_margin",
    }
    drawn = [event.data for event in events if event.kind == "validation"][-1]
    assert [score is None for score in drawn["clip_scores"]] == [prompt == "" for prompt in drawn["prompts"]]
    paths = [run_dir / image for image in drawn["images"]]
    [first, *_] = clip_scores(
        paths[:1], ["a red square"], with_clip.context.roots[0] / "tiny_clip", torch.device("cpu")
    )
    assert drawn["clip_scores"][0] == first
    live = [score for score, weights in zip(drawn["clip_scores"], drawn["weights"], strict=True) if weights == "live"]
    assert scored[-1]["clip_score"]["live"] == pytest.approx(fmean(filter(None, live)))
    assert "CLIP score at step 6 (live weights, of 100): " in result.scores
    assert len(result.losses) == 6
    state = read_state(run_dir, None, lambda path: {})
    assert state is not None and len(state["losses"]) == 6
    plain = with_clip.moved_to(tmp_path / "plain").train(validation=replace(SCORED, clip_model=""))
    assert plain.losses == result.losses and plain.scores == ""
    assert with_clip.train(validation=SCORED).scores == result.scores


def test_a_model_that_cannot_be_loaded_does_not_end_the_run(with_clip: Setup) -> None:
    folder = with_clip.context.roots[0] / "broken_clip"
    shutil.copytree(with_clip.context.roots[0] / "tiny_clip", folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    events: list[Event] = []
    result = with_clip.with_events(events).train(validation=replace(SCORED, clip_model="broken_clip"))
    assert Path(result.adapter.path).is_file() and result.scores == ""
    notices = [event.data for event in events if event.kind == "notice"]
    assert [notice["level"] for notice in notices] == ["warning", "warning"]
    assert notices[0]["message"].startswith("pictures of step 3 were not scored: clip_model broken_clip cannot be load")
    assert len([event for event in events if event.kind == "validation"]) == 2


def test_validate_scores_what_it_drew(with_clip: Setup) -> None:
    settings = ValidateSettings(
        prompts="a red square\na blue square", width=64, height=64, num_inference_steps=1, clip_model="tiny_clip"
    )
    result = validate.validate(settings, model=with_clip.model, context=with_clip.context)
    folder = with_clip.context.roots[0] / "tiny_clip"
    scores = clip_scores(result.images, settings.typed_prompts, folder, torch.device("cpu"))
    assert result.scores.startswith(f"CLIP score (live weights, of 100): {fmean(scores):.2f} +- ")


def test_a_model_that_is_not_there_is_refused_before_weights_load(with_clip: Setup) -> None:
    with pytest.raises(TrainerError, match="clip_model 'nowhere' does not exist"):
        with_clip.train(validation=replace(SCORED, clip_model="nowhere"))
    assert not with_clip.context.runs_dir.exists()
