"""Uploading runs to a hub that a local server plays: what arrives, what fails, what is sent again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.publish import hub as hub_module
from lumina2_trainer.trainer_core.publish.settings import HubSettings
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from safetensors.torch import load

from ..run.test_train import StopAfter
from ..training_setup import PROMPTS, TRAIN, Setup
from .hub_server import HubServer

TOKEN = "hf_SecretOfTheTester"
HUB = HubSettings(repo_id="my-lora")
REPO = "tester/my-lora"
FINISHED = ["README.md", "images/00.png", "images/01.png", "pytorch_lora_weights.safetensors", "run.safetensors"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The server, with huggingface_hub pointed at it and logged in."""
    server = HubServer(token=TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_login"))
    monkeypatch.setattr(hub_module, "RETRY_SECONDS", (0.0,))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def notices_of(events: list[Event]) -> list[str]:
    return [event.data["message"] for event in events if event.kind == "notice"]


def card_of(hub: HubServer) -> tuple[dict, str]:
    text = hub.repositories[REPO].files["README.md"].decode()
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_finished_run_is_sent_with_card_and_pictures(fresh: Setup, hub: HubServer) -> None:
    events: list[Event] = []
    result = fresh.with_events(events).train(hub=HUB, validation=PROMPTS)
    repository = hub.repositories[REPO]
    assert repository.is_private
    assert sorted(repository.files) == FINISHED
    assert repository.files["run.safetensors"] == Path(result.adapter.path).read_bytes()
    assert all(name.startswith("transformer.") for name in load(repository.files["pytorch_lora_weights.safetensors"]))
    metadata, body = card_of(hub)
    assert [(w["text"], w["output"]["url"]) for w in metadata["widget"]] == [
        ("a red square", "images/00.png"),
        ("a blue square", "images/01.png"),
    ]
    assert metadata["base_model"] == "Alpha-VLLM/Lumina-Image-2.0"
    assert {"lora", "lumina2"} <= set(metadata["tags"])
    assert "| train/learning_rate | 0.01 |" in body
    assert "| pictures | 5 |" in body
    assert "load_lora_weights('tester/my-lora', weight_name='pytorch_lora_weights.safetensors')" in body
    assert str(fresh.context.output_dir.parent) not in body
    assert notices_of(events)[-1] == f"step 6 is on the hub: {hub.url}/{REPO}/commit/{1:040d}"
    assert events[-1].kind == "finished"


def test_checkpoints_are_sent_on_the_way(fresh: Setup, hub: HubServer) -> None:
    checkpoints = CheckpointSettings(checkpoint_step_interval=2, num_checkpoints_kept=1)
    result = fresh.train(hub=replace(HUB, push="checkpoints"), checkpoints=checkpoints)
    repository = hub.repositories[REPO]
    assert repository.commits == ["run, step 2", "run, step 4", "run, step 6"]
    assert {"checkpoints/run-000002.safetensors", "checkpoints/run-000004.safetensors"} <= set(repository.files)
    first = load(repository.files["checkpoints/run-000002.safetensors"])
    assert load(repository.files["checkpoints/run-000004.safetensors"]).keys() == first.keys()
    assert not list((Path(result.adapter.run_dir) / "hub" / "checkpoints").iterdir())


def test_a_failed_upload_does_not_stop_the_run_and_is_sent_later(fresh: Setup, hub: HubServer) -> None:
    events: list[Event] = []
    hub.failures = [503] * 10
    result = fresh.with_events(events).train(hub=HUB)
    assert Path(result.adapter.path).exists()
    (message,) = notices_of(events)
    assert message.startswith("upload to my-lora failed; queue the job again to send what is missing: ")
    assert hub.repositories[REPO].commits == []
    hub.failures = []
    num_uploads = hub.num_uploads
    assert fresh.train(hub=HUB).reused
    assert hub.repositories[REPO].commits == ["run, step 6"]
    assert hub.num_uploads == num_uploads, "weights that had arrived were sent again"


def test_a_hiccup_of_the_server_is_tried_again(fresh: Setup, hub: HubServer) -> None:
    events: list[Event] = []
    hub.failures = [502]
    fresh.with_events(events).train(hub=HUB)
    assert hub.repositories[REPO].commits == ["run, step 6"]
    assert not [event for event in events if event.data.get("level") == "warning"]


def test_sending_a_finished_run_again_changes_nothing(fresh: Setup, hub: HubServer) -> None:
    fresh.train(hub=HUB, validation=PROMPTS)
    files, uploads = dict(hub.repositories[REPO].files), hub.num_uploads
    fresh.train(hub=HUB, validation=PROMPTS)
    assert (hub.repositories[REPO].files, hub.num_uploads) == (files, uploads)
    assert hub.repositories[REPO].commits == ["run, step 6"]


def test_a_run_trained_without_the_hub_is_sent_afterwards(fresh: Setup, hub: HubServer) -> None:
    first = fresh.train(validation=PROMPTS)
    again = fresh.train(validation=PROMPTS, hub=HUB)
    assert again.adapter == first.adapter
    assert sorted(hub.repositories[REPO].files) == FINISHED


def test_what_a_stopped_run_could_not_send_goes_with_the_next_upload(fresh: Setup, hub: HubServer) -> None:
    settings = {
        "hub": replace(HUB, push="checkpoints"),
        "checkpoints": CheckpointSettings(checkpoint_step_interval=2, num_checkpoints_kept=1),
    }
    hub.failures = [500, 500]
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(3)).train(**settings)
    fresh.train(**settings)
    assert "checkpoints/run-000002.safetensors" in hub.repositories[REPO].files


def test_of_checkpoints_that_could_not_be_sent_the_newest_waits(fresh: Setup, hub: HubServer) -> None:
    settings = {
        "hub": replace(HUB, push="checkpoints"),
        "checkpoints": CheckpointSettings(checkpoint_step_interval=1, num_checkpoints_kept=1),
    }
    hub.failures = [500] * 100
    result = fresh.train(**settings)
    staged = Path(result.adapter.run_dir) / "hub" / "checkpoints"
    assert [path.name for path in staged.iterdir()] == ["run-000005.safetensors"]
    hub.failures = []
    fresh.train(**settings)
    assert {"checkpoints/run-000005.safetensors", "run.safetensors"} <= set(hub.repositories[REPO].files)
    assert not list(staged.iterdir())


def test_without_a_token_the_run_ends_well_and_says_so(
    fresh: Setup, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    events: list[Event] = []
    result = fresh.with_events(events).train(hub=HUB)
    assert Path(result.adapter.path).exists()
    assert all("there is no token: run `hf auth login` or set HF_TOKEN" in text for text in notices_of(events))
    kinds = [event.kind for event in events]
    assert kinds.index("notice") < kinds.index("checkpoint"), "told after hours of training, not at the start"
    assert hub.repositories == {}


def test_nothing_is_sent_to_a_public_repository_unless_asked(fresh: Setup, hub: HubServer) -> None:
    fresh.train(hub=replace(HUB, private=False))
    assert not hub.repositories[REPO].is_private
    events: list[Event] = []
    fresh.with_events(events).train(replace(TRAIN, seed=1), hub=HUB)
    assert "is public, so nothing was sent: make it private" in notices_of(events)[-1]
    assert hub.repositories[REPO].commits == ["run, step 6"]


@pytest.mark.parametrize(("status", "sentence"), [(401, "does not accept the token"), (403, "may not write there")])
def test_a_refused_token_is_one_sentence(fresh: Setup, hub: HubServer, status: int, sentence: str) -> None:
    hub.always_fails_with = status
    events: list[Event] = []
    fresh.with_events(events).train(hub=HUB)
    assert sentence in notices_of(events)[-1]


@pytest.mark.parametrize("status", [0, 400, 401, 500])
def test_the_token_is_in_no_file_log_or_event(
    fresh: Setup, hub: HubServer, status: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="lumina2_trainer")
    hub.always_fails_with = status
    events: list[Event] = []
    fresh.with_events(events).train(hub=HUB, validation=PROMPTS)
    assert notices_of(events)
    written = [path.read_bytes() for path in fresh.context.output_dir.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(TOKEN.encode() in content for content in written)
    console = capfd.readouterr()
    assert TOKEN not in caplog.text + repr(events) + console.out + console.err


def test_nothing_leaves_the_machine_with_push_never(fresh: Setup, hub: HubServer) -> None:
    result = fresh.train(hub=replace(HUB, push="never"), validation=PROMPTS)
    folder = Path(result.adapter.run_dir) / "hub"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == FINISHED
    assert hub.repositories == {}


def test_stopping_does_not_wait_for_the_upload(fresh: Setup, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    held = threading.Event()
    monkeypatch.setattr("lumina2_trainer.trainer_core.publish.background.GRACE_SECONDS", 0.1)
    monkeypatch.setattr(hub_module.HubUpload, "_open_repository", lambda self: held.wait(30) and REPO)
    events: list[Event] = []
    with pytest.raises(StopTraining):
        fresh.with_events(events).with_stop(StopAfter(2)).train(hub=HUB)
    held.set()
    assert notices_of(events) == [
        "the upload to my-lora was not waited for: queue the job again to send what is missing"
    ]


def test_a_disk_that_cannot_stage_a_checkpoint_does_not_stop_the_run(
    fresh: Setup, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_module, "link_or_copy", full)
    events: list[Event] = []
    checkpoints = CheckpointSettings(checkpoint_step_interval=2)
    result = fresh.with_events(events).train(hub=replace(HUB, push="checkpoints"), checkpoints=checkpoints)
    assert Path(result.adapter.path).exists()
    assert "No space left on device" in notices_of(events)[0]


def test_how_a_run_is_published_does_not_start_a_new_one(fresh: Setup, hub: HubServer) -> None:
    first = fresh.trained()
    assert fresh.train(hub=replace(HUB, note="Hello")).adapter == first.adapter


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"repo_id": ""}, "repo_id is empty"),
        ({"repo_id": "a/b/c"}, "repo_id is 'a/b/c': write"),
        ({"repo_id": "a--b"}, "repo_id is 'a--b': write"),
        ({"repo_id": "https://huggingface.co/a/b"}, "repo_id is "),
        ({"push": "often"}, "push is 'often': choose one of end, checkpoints, never"),
        ({"base_model": "/models/lumina"}, "base_model is '/models/lumina': write"),
        ({"license": "My own\nlicense"}, "license is "),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(TrainerError, match=sentence):
        HubSettings(**{"repo_id": "a/b", **values})


def test_sending_checkpoints_that_are_never_written_is_refused(fresh: Setup) -> None:
    with pytest.raises(TrainerError, match='push is "checkpoints" but checkpoint_step_interval is 0'):
        fresh.train(hub=replace(HUB, push="checkpoints"), checkpoints=CheckpointSettings(checkpoint_step_interval=0))
    assert not fresh.context.runs_dir.exists()


EMA_RUN = CheckpointSettings(use_ema=True, ema_decay=0.5, checkpoint_step_interval=4)


def test_the_average_is_sent_where_it_is_asked_for(fresh: Setup, hub: HubServer) -> None:
    settings = replace(HUB, weights="ema", push="checkpoints")
    result = fresh.train(hub=settings, validation=PROMPTS, checkpoints=EMA_RUN)
    files, live = hub.repositories[REPO].files, Path(result.adapter.path)
    average = live.with_name("adapter_ema.safetensors")
    assert files["run.safetensors"] == average.read_bytes() != live.read_bytes()
    checkpoint = Path(result.adapter.run_dir) / "checkpoints/step-000004/adapter_ema.safetensors"
    assert files["checkpoints/run-000004.safetensors"] == checkpoint.read_bytes()
    pictures = {name for name in files if name.startswith("images/")}
    assert pictures == {"images/00_ema.png", "images/01_ema.png"}
    diffusers = load(files["pytorch_lora_weights.safetensors"])
    sent, kept = load(files["run.safetensors"]), load(live.read_bytes())
    name = next(name for name in sent if name.endswith("attention.out.lora_A.weight"))
    of_diffusers = next(t for n, t in diffusers.items() if t.shape == sent[name].shape and (t == sent[name]).all())
    assert not (of_diffusers == kept[name]).all()


def test_an_average_that_is_not_kept_is_refused_before_training(fresh: Setup, hub: HubServer) -> None:
    with pytest.raises(TrainerError, match='weights of Hub Upload is "ema" but use_ema is off'):
        fresh.train(hub=replace(HUB, weights="ema"))
    assert REPO not in hub.repositories
