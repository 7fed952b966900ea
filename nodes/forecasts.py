"""What the Train nodes behind a cache will take, said before the cache is filled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..trainer_core.context import StepContext
from ..trainer_core.data.folder import Dataset
from ..trainer_core.errors import TrainerError
from ..trainer_core.forecast import DatasetOutput, forecast_runs, nodes_behind
from ..trainer_core.workflow import parse_workflow

logger = logging.getLogger(__name__)


class Forecaster:
    """Tells the Train nodes of a prompt, each once."""

    def __init__(self) -> None:
        self._prompt: Mapping[str, Any] | None = None
        self._told: set[str] = set()

    def announcing(self, hidden: Any, dataset: Dataset, context: StepContext) -> StepContext:
        """The same surroundings, in which the runs are forecast when something is to be encoded.

        Args:
            hidden: Hidden inputs of the cache's node.
            dataset: What it encodes.
            context: Folders and device.
        """
        return replace(context, before_encoding=lambda: self._announce(hidden, dataset, context))

    def _announce(self, hidden: Any, dataset: Dataset, context: StepContext) -> None:
        if hidden.prompt is not self._prompt:
            self._prompt, self._told = hidden.prompt, set()
        node = hidden.unique_id
        try:
            workflow = parse_workflow(hidden.prompt, "the prompt")
            links = next(other.links for other in workflow.nodes if other.id == node)
            known = {links["dataset"].node: DatasetOutput(dataset=dataset)}
            forecasts = forecast_runs(workflow, context, known, nodes_behind(workflow, node) - self._told)
        except (TrainerError, ModuleNotFoundError) as error:  # a step will say so when it is its turn
            logger.debug("No forecast: %s", error)
            return
        for forecast in forecasts:
            self._told.add(forecast.node)
            context.emit(forecast.to_event())


FORECASTER = Forecaster()
"""Of this process, which executes one prompt at a time."""
