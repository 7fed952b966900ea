"""Training the demo's transformer and text encoder on emoji, in runs that continue one another.

Shape suffixes: B samples, N longest caption in tokens, L packed caption tokens, T image tokens, C channels of a patch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings, draw_timesteps
from torch import Tensor, nn

from .batches import MAX_CAPTION_TOKENS, BatchPlanner, caption_room
from .fast_path import MAX_GRADIENT_ERROR, check_gradients, compile_pieces
from .network import TRANSFORMER_CONFIG, DemoNetwork
from .static_layout import RotaryRows, build_static_layout, members

BLOCK_STEPS = 100
"""Steps planned at a time; the host waits for the device once a block."""
EMA_STEP_INTERVAL = 10


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Of one run."""

    batch_size: int = 256
    learning_rate: float = 1e-3
    num_warmup_steps: int = 500
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    total_seconds: float = 1000.0
    """Length of all runs together: the learning rate falls to zero over it as half a cosine."""
    seed: int = 0
    """Of this run: the number of runs before it, so that each draws anew."""
    use_compile: bool = True
    use_cuda_graph: bool = True


class StaticBatch:
    """The inputs of a step at fixed addresses, so that a captured step can be replayed."""

    def __init__(self, batch_size: int, num_patches: int, device: torch.device) -> None:
        self.picture_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.token_ids_BN = torch.zeros(batch_size, MAX_CAPTION_TOKENS, dtype=torch.int64, device=device)
        self.lengths_B = torch.ones(batch_size, dtype=torch.int64, device=device)
        self.timesteps_B = torch.zeros(batch_size, device=device)
        self.noise_TC = torch.zeros(batch_size * num_patches, TRANSFORMER_CONFIG.patch_channels, device=device)


def batch_loss(network: nn.Module, batch: StaticBatch, patches_NTC: Tensor, rows: RotaryRows) -> Tensor:
    """Mean squared error of the velocity, float32.

    Args:
        network: Compiled or not.
        batch: Inputs.
        patches_NTC: [N, T, C] latents of every picture, patchified.
        rows: Rotations.
    """
    num_samples = batch.lengths_B.shape[0]
    num_caption_tokens = caption_room(num_samples)
    layout = build_static_layout(batch.lengths_B, num_caption_tokens, rows)
    left_over = num_caption_tokens - batch.lengths_B.sum(0, keepdim=True)
    segment_L, position_L = members(torch.cat([batch.lengths_B, left_over]), num_caption_tokens)
    token_index_L = torch.where(segment_L < num_samples, segment_L * MAX_CAPTION_TOKENS + position_L, 0)
    latents_TC = patches_NTC[batch.picture_B].flatten(0, 1)
    t_T1 = batch.timesteps_B.repeat_interleave(rows.num_patches, output_size=len(latents_TC))[:, None]
    noisy_TC = (1 - t_T1) * batch.noise_TC + t_T1 * latents_TC
    with torch.autocast(latents_TC.device.type, torch.bfloat16):
        velocity_TC = network(batch.token_ids_BN, token_index_L, noisy_TC, batch.timesteps_B, layout)
    return (velocity_TC.float() - (latents_TC - batch.noise_TC)).square().mean()


class Trainer:
    """Live weights, their moving average and the optimizer."""

    def __init__(
        self,
        network: DemoNetwork,
        patches_NTC: Tensor,
        planner: BatchPlanner,
        settings: TrainingSettings,
        progress: dict[str, float],
    ) -> None:
        device = patches_NTC.device
        self.network, self.patches_NTC, self.planner, self.settings = network, patches_NTC, planner, settings
        self.step, self.seconds = int(progress.get("step", 0)), progress.get("seconds", 0.0)
        self.steps_of_run = 0
        side = math.isqrt(patches_NTC.shape[1])
        self.rows = RotaryRows.build(MAX_CAPTION_TOKENS, (side, side), TRANSFORMER_CONFIG.axes_dims, device)
        self.parameters = list(network.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.batch = StaticBatch(settings.batch_size, patches_NTC.shape[1], device)
        self.learning_rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        if settings.use_compile:
            self._compile()
        self.step_once = self._capture() if settings.use_cuda_graph and device.type == "cuda" else self._eager_step

    def train(self, seconds: float, report: Callable[[str], None]) -> None:
        """Go on for a number of seconds."""
        started, before, losses = time.monotonic(), self.seconds, []
        while self.seconds - before < seconds:
            losses.append(self._train_block())
            self.seconds = before + time.monotonic() - started
            if self.steps_of_run % (10 * BLOCK_STEPS) == 0 or self.steps_of_run == BLOCK_STEPS:
                loss, learning_rate = sum(losses) / len(losses), float(self.learning_rate)
                report(f"step {self.step} {self.seconds:.0f}s loss {loss:.4f} lr {learning_rate:.2e}")
                losses = []

    def _train_block(self) -> float:
        """BLOCK_STEPS steps; the mean loss."""
        device, settings = self.patches_NTC.device, self.settings
        decline = 0.5 * (1 + math.cos(math.pi * min(1.0, self.seconds / settings.total_seconds)))
        plan = self.planner.draw(BLOCK_STEPS)
        plan_tensors = [x.to(device) for x in (plan.picture_KB, plan.token_ids_KBN, plan.lengths_KB)]
        tokens = (self.rows.num_patches,) * (BLOCK_STEPS * settings.batch_size)
        timesteps_KB = draw_timesteps(NoiseSettings(), tokens, self.generator).view(BLOCK_STEPS, -1)
        total = torch.zeros((), device=device)
        for index in range(BLOCK_STEPS):
            self.step += 1
            self.steps_of_run += 1
            warmup = min(1.0, self.steps_of_run / settings.num_warmup_steps)
            self.learning_rate.fill_(settings.learning_rate * warmup * decline)
            self.batch.picture_B.copy_(plan_tensors[0][index])
            self.batch.token_ids_BN.copy_(plan_tensors[1][index])
            self.batch.lengths_B.copy_(plan_tensors[2][index])
            self.batch.timesteps_B.copy_(timesteps_KB[index])
            self.batch.noise_TC.normal_(generator=self.generator)
            total += self.step_once()
            if self.steps_of_run % EMA_STEP_INTERVAL == 0:
                self._update_ema()
        loss = float(total) / BLOCK_STEPS
        assert math.isfinite(loss), f"loss {loss} near step {self.step}"
        return loss

    def _compile(self) -> None:
        """Compile the network once its gradients are seen to be right."""
        plan = self.planner.draw(1)
        self.batch.picture_B.copy_(plan.picture_KB[0])
        self.batch.token_ids_BN.copy_(plan.token_ids_KBN[0])
        self.batch.lengths_B.copy_(plan.lengths_KB[0])
        self.batch.timesteps_B.uniform_(generator=self.generator)
        self.batch.noise_TC.normal_(generator=self.generator)
        error = check_gradients(self.network, lambda one: batch_loss(one, self.batch, self.patches_NTC, self.rows))
        assert error < MAX_GRADIENT_ERROR, f"compiled gradients are off by {error:.3f}: train with --no-compile"
        compile_pieces(self.network)

    def _eager_step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(self.network, self.batch, self.patches_NTC, self.rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        self.optimizer.step()
        return loss.detach()

    def _capture(self) -> Callable[[], Tensor]:
        """Record one step as a CUDA graph; the learning rate is zero meanwhile, so nothing is learned."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._eager_step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            loss = batch_loss(self.network, self.batch, self.patches_NTC, self.rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
            self.optimizer.step()
            loss = loss.detach()
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.settings.ema_decay, self.steps_of_run / (self.steps_of_run + 100)) ** EMA_STEP_INTERVAL
        torch._foreach_lerp_(self.ema, self.parameters, 1 - decay)

    def ema_state(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        names = [name for name, _ in self.network.named_parameters()]
        return dict(zip(names, self.ema, strict=True))

    def progress(self) -> dict[str, float]:
        """What the next run continues from."""
        return {"step": self.step, "seconds": self.seconds, "runs": self.settings.seed + 1}
