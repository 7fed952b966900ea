"""The live parts of a run, and one optimizer step on them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batches import Stream
from ..data.cache import TrainingSample
from ..data.mixing import make_stream
from ..device import peak_memory_gib
from ..errors import TrainerError
from ..lumina2.network.padding import ShapeLimiter
from ..lumina2.network.transformer import Lumina2Transformer
from ..lumina2.objective import NoisyBatch, flow_matching_loss
from ..lumina2.quant.precision import PRECISIONS, computation
from ..lumina2.timesteps import NoiseSettings
from ..processes import ALONE, Processes
from ..seeds import derive_seed
from .base_targets import BaseOnly, with_base_targets
from .batch_builder import BatchBuilder, TrainingBatch
from .graphs import GraphedPass, allows_graphs, can_be_captured
from .optim.settings import OptimizerSettings, lr_factor
from .prefetch import Prefetcher
from .rollout import with_rollout
from .rollout_settings import RolloutSettings
from .step_record import StepRecord, StepSamples
from .updates import UpdateAfterBackward, WeightUpdate
from .weight_views import Ema, WeightView, weight_views


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The numbers a step depends on."""

    num_steps: int
    batch_size: int
    learning_rate: float
    caption_dropout: float
    seed: int
    precision: str
    optimizer: OptimizerSettings
    noise: NoiseSettings
    rollout: RolloutSettings | None = None
    """Which samples come from the model itself; None is none."""


@dataclass(kw_only=True)
class TrainingSession:
    """What is trained and what it is trained on. `step` counts finished optimizer steps."""

    transformer: Lumina2Transformer
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    samples: Sequence[TrainingSample]
    unconditional: Tensor
    """[tokens, width], text states of the bare empty prompt."""
    plan: StepPlan
    device: torch.device
    memory_limit: float = math.inf
    """Bytes that training may take on the device."""
    step: int = 0
    update: WeightUpdate | None = None
    """How gradients become an update; after the backward pass if None."""
    ema: Ema | None = None
    """Running average of the parameters."""
    base_only: BaseOnly | None = None
    """Switches off what is trained; regularisation samples need it."""
    processes: Processes = ALONE
    """Who trains the same weights on other samples of each step. `update` averages with them."""
    take_wishes: Callable[[], frozenset[str]] = frozenset
    """What this process was asked; alone it need not be told."""
    wishes: frozenset[str] = field(default=frozenset(), init=False)
    """What any of several processes was asked during the last step; all know it."""
    stream: Stream = field(init=False)
    _is_ending_step: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        max_grad_norm = self.plan.optimizer.max_grad_norm
        self._update = self.update or UpdateAfterBackward(self.parameters, self.optimizer, max_grad_norm)
        self.stream = make_stream(self.samples, self.plan.seed)
        self._batches = self._start_batches()
        self._graphs = self._start_graphs()

    def _start_batches(self) -> Prefetcher[TrainingBatch]:
        """The stream's batches on the CPU; for a GPU they are built ahead, a CPU has nothing to spare for that."""
        plan, is_cuda = self.plan, self.device.type == "cuda"
        builder = BatchBuilder(
            self.samples,
            self.stream,
            unconditional=self.unconditional,
            batch_size=plan.batch_size,
            caption_dropout=plan.caption_dropout,
            seed=plan.seed,
            noise=plan.noise,
            samples_per_step=self._samples_per_step,
            axes_dims=self.transformer.config.axes_dims,
            shapes=ShapeLimiter(self.transformer.config, self.device, PRECISIONS[plan.precision].dtype),
            rollout=plan.rollout,
        )
        return Prefetcher(
            (lambda position: builder.build(position).pinned()) if is_cuda else builder.build,
            stride=self.processes.count * plan.batch_size,
            end=plan.num_steps * self._samples_per_step,
            is_threaded=self.device.type != "cpu",
        )

    def _start_graphs(self) -> GraphedPass | None:
        """For a GPU that may be faster than Python can start its kernels."""
        if not (allows_graphs(self.device) and self._update.keeps_gradients and can_be_captured(self.transformer)):
            return None
        # A function and its arguments, not a method: that would tie this session, and with it the model, to itself.
        differentiate = functools.partial(_differentiate, self.transformer, self.plan, self.device)
        return GraphedPass(differentiate, self.parameters, self.device, self.memory_limit)

    @property
    def _samples_per_step(self) -> int:
        """Of all processes."""
        return self.processes.count * self.plan.optimizer.gradient_accumulation_steps * self.plan.batch_size

    @property
    def num_graphs(self) -> int:
        """CUDA graphs captured so far."""
        return 0 if self._graphs is None else self._graphs.num_graphs

    @property
    def is_consistent(self) -> bool:
        """False while some of weights, average and `step` are of this step and others of the last."""
        return self._update.is_consistent and not self._is_ending_step

    @property
    def views(self) -> tuple[WeightView, ...]:
        """The weights as they are drawn with and saved."""
        return weight_views(self.parameters, self.optimizer, self.ema)

    @property
    def average(self) -> dict[str, Tensor] | None:
        """The running average of the parameters, by their names."""
        return None if self.ema is None else self.ema.average

    def make_batch(self, first_position: int) -> TrainingBatch:
        """The batch that starts at a position of the stream, on the device."""
        return self._batches.take(first_position).on(self.device)

    def train_step(self) -> StepRecord:
        """One optimizer step.

        Raises:
            TrainerError: Loss or gradient is not finite. After such a loss nothing is updated, after such a gradient
                at most what came before it, see `is_consistent`.
        """
        started = time.perf_counter()
        step, plan = self.step + 1, self.plan
        learning_rate = plan.learning_rate * lr_factor(plan.optimizer, step, plan.num_steps)
        own, losses = StepSamples(), []
        positions = self._positions(step)
        for position in positions:
            batch = self.make_batch(position)
            torch.manual_seed(derive_seed(plan.seed, "network", position))  # dropout inside the adapter
            is_last = position == positions[-1]
            losses.append(self._differentiate(self._prepare(batch), learning_rate, is_last=is_last))
            own.add(batch)
        if self.processes.count > 1:
            own.wishes = self.take_wishes()
        parts = self.processes.gather(own)  # while the device is still at work
        samples = StepSamples.joined(parts)
        all_losses = self.processes.join(torch.cat(losses), [len(part.ids) for part in parts])
        *samples.losses, norm = torch.cat([all_losses, self._update.measure()[None]]).tolist()  # the one wait
        self.processes.check()
        self._check_finite(step, samples, norm)
        self._is_ending_step = True
        self._update.apply()
        if self.ema is not None:
            self.ema.update(self.parameters, step)
        self.step = step
        self._is_ending_step = False
        self.wishes = samples.wishes
        return StepRecord(
            step=step,
            loss=samples.loss,
            loss_by_bin=samples.loss_by_bin,
            learning_rate=learning_rate,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
            peak_memory_gib=peak_memory_gib(self.device),
            epoch=self.stream.epoch_at((step - 1) * self._samples_per_step),
            files=samples.files,
            low_resolution_loss=samples.low_resolution_loss,
            num_rolled=None if plan.rollout is None else samples.num_rolled,
        )

    def _positions(self, step: int) -> range:
        """Where this process's batches of a step start; those of the others lie between them."""
        first = (step - 1) * self._samples_per_step
        size = self.plan.batch_size
        return range(first + self.processes.index * size, first + self._samples_per_step, self.processes.count * size)

    def _prepare(self, batch: TrainingBatch) -> NoisyBatch:
        """The batch with what the model itself has a part in: rolled samples, and targets of regularisation samples."""
        plan, noisy = self.plan, batch.noisy
        if plan.rollout is not None:
            noisy = with_rollout(self.transformer, noisy, batch.rolled, plan.rollout, plan.precision, self.device)
        if self.base_only is None:
            assert not any(batch.is_regularisation), "regularisation without a base to look at"
            return noisy
        return with_base_targets(
            self.transformer, self.base_only, noisy, batch.is_regularisation, plan.precision, self.device
        )

    def _differentiate(self, batch: NoisyBatch, learning_rate: float, *, is_last: bool) -> Tensor:
        """Add a batch's gradients; its losses [B], detached."""
        if self._graphs is not None:
            loss_B = self._graphs(batch)
            self._update.prepare(loss_B, learning_rate, is_last=is_last)
            return loss_B
        prepare = functools.partial(self._update.prepare, learning_rate=learning_rate, is_last=is_last)
        return _differentiate(self.transformer, self.plan, self.device, batch, prepare)

    def _check_finite(self, step: int, samples: StepSamples, norm: float) -> None:
        is_finite = [math.isfinite(loss) for loss in samples.losses]
        if all(is_finite) and math.isfinite(norm):
            return
        bad = [name for name, is_good in zip(samples.ids, is_finite, strict=True) if not is_good] or samples.ids
        what = "gradient" if all(is_finite) else "loss"
        raise TrainerError(
            f"step {step}: the {what} is not a finite number, for {', '.join(bad)}. {self._update.discard()};"
            " look at these files, or lower the learning rate"
        )


def _differentiate(
    transformer: Lumina2Transformer,
    plan: StepPlan,
    device: torch.device,
    batch: NoisyBatch,
    prepare: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Add a batch's share of the step's gradients; `prepare` is told the losses before the backward pass."""
    with computation(plan.precision, device):
        if torch.is_autocast_enabled(device.type):  # until it ends: a graph would read casts that no longer exist
            torch.set_autocast_cache_enabled(False)
        loss_B = flow_matching_loss(transformer, batch, plan.noise)
    if prepare is not None:
        prepare(loss_B.detach())
    (batch.reduce(loss_B) / plan.optimizer.gradient_accumulation_steps).backward()
    return loss_B.detach()
