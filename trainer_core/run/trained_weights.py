"""What a run trains: an adapter on the model, or the model's own weights."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..adapters.export import read_adapter
from ..adapters.kinds import ADAPTERS, AdapterSettings
from ..adapters.metadata import RunFacts, adapter_metadata, model_metadata
from ..lumina2.models.checkpoint import AXES_DIMS_KEY, read_config
from ..lumina2.network.transformer import Lumina2Transformer
from ..processes import ALONE, Processes
from ..seeds import derive_seed
from ..training.optim.rounded_adamw import RoundedAdamW
from ..training.updates import UpdateAfterBackward, UpdateInBackward, WeightUpdate
from .folder import ADAPTER_FILE, MODEL_FILE
from .job import TrainJob, TrainLoRASettings


class TrainedWeights(Protocol):
    """The differences between the kinds of training."""

    file_name: str
    """Of the trained weights, in checkpoints and at the end."""

    def check(self, base_path: Path) -> None:
        """Refuse what does not suit the base; its weights are not read."""

    def attach(self, transformer: Lumina2Transformer) -> dict[str, nn.Parameter]:
        """Make the transformer trainable, in place; the parameters by name, in the optimizer's order."""

    def make_update(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        processes: Processes = ALONE,
    ) -> WeightUpdate:
        """How gradients become an update."""

    def export(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        """The file's tensors."""

    def restore(self, path: Path) -> None:
        """Take over what is not among the parameters from a checkpoint's file of trained weights."""

    def metadata(self, facts: RunFacts, transformer: Lumina2Transformer) -> dict[str, str]:
        """What the file says of itself."""


class AdapterWeights:
    """An adapter in float32 on a frozen model."""

    file_name = ADAPTER_FILE

    def __init__(self, train: TrainLoRASettings, settings: AdapterSettings) -> None:
        self._train = train
        self._settings = settings
        self._kind = ADAPTERS[settings.kind]
        self._transformer: weakref.ref[Lumina2Transformer] | None = None

    def check(self, base_path: Path) -> None:
        with torch.device("meta"):
            network = Lumina2Transformer(read_config(base_path))
        self._kind.check(network, self._settings, rank=self._train.rank, alpha=self._train.alpha)

    def attach(self, transformer: Lumina2Transformer) -> dict[str, nn.Parameter]:
        train = self._train
        seed = derive_seed(train.seed, "adapter")
        parameters = self._kind.attach(transformer, self._settings, rank=train.rank, alpha=train.alpha, seed=seed)
        self._transformer = weakref.ref(transformer)
        return parameters

    def make_update(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        processes: Processes = ALONE,
    ) -> WeightUpdate:
        return UpdateAfterBackward(parameters, optimizer, max_grad_norm, processes)

    def export(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        return self._kind.export(self._attached(), parameters)

    def restore(self, path: Path) -> None:
        self._kind.restore(self._attached(), read_adapter(path).tensors)

    def metadata(self, facts: RunFacts, transformer: Lumina2Transformer) -> dict[str, str]:
        train, settings = self._train, self._settings
        return adapter_metadata(facts, kind=settings.kind, rank=train.rank, alpha=train.alpha, targets=settings.targets)

    def _attached(self) -> Lumina2Transformer:
        transformer = None if self._transformer is None else self._transformer()
        assert transformer is not None, "the transformer is gone, or the adapter was never attached"
        return transformer


class FullWeights:
    """All of the transformer, in the precision it was loaded in."""

    file_name = MODEL_FILE

    def check(self, base_path: Path) -> None:
        pass

    def attach(self, transformer: Lumina2Transformer) -> dict[str, nn.Parameter]:
        return unfreeze(transformer)

    def make_update(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        processes: Processes = ALONE,
    ) -> WeightUpdate:
        if isinstance(optimizer, RoundedAdamW):
            return UpdateInBackward(parameters, optimizer, max_rms=max_grad_norm, processes=processes)
        return UpdateAfterBackward(parameters, optimizer, max_grad_norm, processes)

    def export(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        return parameters

    def restore(self, path: Path) -> None:
        pass

    def metadata(self, facts: RunFacts, transformer: Lumina2Transformer) -> dict[str, str]:
        axes = {AXES_DIMS_KEY: json.dumps(list(transformer.config.axes_dims))}
        return {**model_metadata(facts), **axes}


def choose_trained_weights(job: TrainJob) -> TrainedWeights:
    """The kind of training a job asks for."""
    if job.adapter is None:
        return FullWeights()
    assert isinstance(job.train, TrainLoRASettings), "an adapter comes with its rank"
    return AdapterWeights(job.train, job.adapter)


def unfreeze(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Make every weight trainable, in place.

    Returns:
        The parameters by their native names, in the dtype they have: matrices first, then norms and biases, which are
        not decayed.
    """
    transformer.requires_grad_(True)
    named = list(transformer.named_parameters())
    return dict(sorted(named, key=lambda item: item[1].ndim <= 1))
