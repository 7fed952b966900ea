"""How long a run is said to take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.errors import StopTraining
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.run import plan
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..lumina2.tiny_models import TINY, random_samples, run_packed, tiny_transformer
from ..training_setup import PROMPTS, TRAIN, Setup, make_setup
from .test_train import StopAfter


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("time"))


@pytest.fixture
def fresh(shared: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Of a machine that does ten billion operations a second."""
    monkeypatch.setattr(plan, "measure_rate", lambda device, dtype: 1e10)
    return shared.moved_to(tmp_path)


def predict(setup: Setup, folder: str, **options: object) -> float:
    """Seconds that a run of these options is said to take; it is stopped before its first step."""
    events: list[Event] = []
    context: StepContext = setup.context
    settings = options.pop("train", TRAIN)
    stopping = setup.moved_to(context.output_dir / folder).with_events(events).with_stop(lambda: True)
    with pytest.raises(StopTraining):
        stopping.train(settings, **options)  # type: ignore[arg-type]
    (planned,) = (event.data for event in events if event.kind == "planned")
    return planned["predicted_seconds"]


def test_operations_of_a_pass_are_those_that_pytorch_counts() -> None:
    network = tiny_transformer()
    latents, embeds, times = random_samples([(30, 32, 24)])
    # Neither fused attention of a CPU nor oneDNN's products are counted by PyTorch.
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        torch.no_grad(),
    ):
        run_packed(network, latents, embeds, times)
    counted = plan.count_pass(network, 30, 16 * 12).total
    # Embedders, modulation and the last layer are not counted.
    assert 0.9 * counter.get_total_flops() < counted < counter.get_total_flops()
    assert TINY.num_layers == len(network.layers)


def test_what_makes_a_run_longer(fresh: Setup) -> None:
    plain = predict(fresh, "plain")
    assert predict(fresh, "longer", train=replace(TRAIN, steps=12)) == pytest.approx(2 * plain)
    assert predict(fresh, "batches", train=replace(TRAIN, batch_size=4)) == pytest.approx(2 * plain)
    twice = OptimizerSettings(gradient_accumulation_steps=2)
    assert predict(fresh, "twice", optimizer_settings=twice) == pytest.approx(2 * plain)
    again = predict(fresh, "again", train=replace(TRAIN, gradient_checkpointing=True))
    assert 1.3 * plain < again < 1.6 * plain


def test_pictures_and_held_out_loss_take_their_time(fresh: Setup) -> None:
    plain = predict(fresh, "plain")
    at_the_end = predict(fresh, "end", validation=PROMPTS) - plain
    three_times = predict(fresh, "thrice", validation=replace(PROMPTS, every_num_steps=2)) - plain
    assert three_times == pytest.approx(3 * at_the_end)
    unguided = predict(fresh, "unguided", validation=replace(PROMPTS, guidance_scale=1.0)) - plain
    assert 2 * unguided == pytest.approx(at_the_end)
    both = predict(fresh, "both", validation=PROMPTS, checkpoints=CheckpointSettings(use_ema=True)) - plain
    assert both == pytest.approx(2 * at_the_end)
    split = replace(PROMPTS, prompts="", held_out_share=0.4)
    rare = predict(fresh, "rare", validation=split)
    often = predict(fresh, "often", validation=replace(split, held_out_step_interval=2))
    assert often > 1.5 * rare - 0.5 * plain > plain / 2


def test_a_resumed_run_takes_what_is_left(fresh: Setup) -> None:
    plain = predict(fresh, "plain")
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(3)).train()
    events: list[Event] = []
    fresh.with_events(events).train()
    (planned,) = (event.data for event in events if event.kind == "planned")
    assert planned["step"] == 3
    assert planned["predicted_seconds"] == pytest.approx(plain / 2)


def test_the_rate_of_this_machine_is_a_plausible_one() -> None:
    assert 1e8 < plan.measure_rate(torch.device("cpu"), torch.float32) < 1e14
