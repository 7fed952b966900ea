"""nodes/host.py inside a real host: modes, memory, errors, interruption, events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .checkouts import Host

SCRIPT = Path(__file__).parent / "script_host_step.py"


@pytest.fixture(scope="module")
def facts(host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script met in this host, and the extra datasets folder it was given."""
    folder = tmp_path_factory.mktemp("datasets")
    return {**host.run(SCRIPT, folder), "datasets_dir": str(folder)}


def test_a_step_runs_with_gradients_and_gives_inference_mode_back(facts: dict[str, Any]) -> None:
    assert facts["modes"] == [False, True, True]


def test_host_models_give_their_memory_back_first(facts: dict[str, Any]) -> None:
    assert facts["loaded"] == [1, 0]


def test_what_a_cancelled_step_left_in_cycles_is_gone_before_the_next(facts: dict[str, Any]) -> None:
    assert facts["is_garbage_alive"] is False


def test_swapped_captions_and_a_renamed_picture_change_a_folder(facts: dict[str, Any]) -> None:
    first, same, captions_swapped, picture_renamed = facts["folder_fingerprints"]
    assert first == same
    assert len({first, captions_swapped, picture_renamed}) == 3


def test_a_replaced_lora_to_start_from_is_noticed(facts: dict[str, Any]) -> None:
    none, missing, first, second = facts["lora_fingerprints"]
    assert none == missing == ""
    assert len({none, first, second}) == 3


def test_damage_to_one_cache_is_counted_for_that_cache(facts: dict[str, Any]) -> None:
    assert facts["damage"] == ["ValueError", "an entry is gone: queue Cache Latents again"]
    assert facts["lost_caches"] == [[0, 0], [1, 0]]


def test_torch_is_left_as_it_was(facts: dict[str, Any]) -> None:
    assert (facts["dtype"], facts["is_deterministic"], facts["has_same_draw"]) == ("torch.float32", False, True)


def test_datasets_may_lie_in_input_and_in_extra_folders(facts: dict[str, Any]) -> None:
    assert Path(facts["roots"][0]).name == "input"
    assert facts["roots"][1:] == [facts["datasets_dir"]]


def test_workflow_of_the_canvas_reaches_the_step(facts: dict[str, Any]) -> None:
    assert json.loads(facts["workflow"]) == {"nodes": []}


def test_mistake_is_shown_as_it_was_written(facts: dict[str, Any]) -> None:
    assert facts["mistake"] == ["ValueError", "rank is 0: it must be at least 1"]


def test_missing_library_is_named_with_the_command_that_installs_it(facts: dict[str, Any]) -> None:
    assert "`pip install peft`" in facts["missing_library"][1]


def test_interruption_inside_the_hosts_progress_bar_ends_at_a_safe_place(facts: dict[str, Any]) -> None:
    assert (facts["should_stop"], facts["interruption"], facts["is_still_asked"]) == ([True], "interrupted", False)


def test_events_are_thinned_out_but_the_last_is_sent(facts: dict[str, Any]) -> None:
    assert facts["first_and_last"] == [1, 1000]
    assert facts["num_sent"] < 10


def test_pictures_are_sent_as_the_browser_finds_them(facts: dict[str, Any]) -> None:
    assert facts["validation"] == {
        "run": "fast",
        "node": "7",
        "step": 1000,
        "images": [{"filename": "00.png", "subfolder": "lumina2_trainer/fast/samples/step-001000", "type": "output"}],
    }
