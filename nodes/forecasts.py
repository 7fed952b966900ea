"""What the Train nodes behind a cache will take, said before the cache is filled."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..trainer_core.context import RUNS_FOLDER, StepContext
from ..trainer_core.data.folder import Dataset
from ..trainer_core.errors import TrainerError
from ..trainer_core.workflow.file import parse_workflow
from ..trainer_core.workflow.forecast import DatasetOutput, forecast_runs, nodes_behind
from . import host
from .live_runs import RUNS

logger = logging.getLogger(__name__)


class Forecaster:
    """Tells the Train nodes of a prompt, each once."""

    def __init__(self) -> None:
        self._prompt: Mapping[str, Any] | None = None
        self._told: dict[str, str] = {}  # run by node

    @contextmanager
    def forecasting(self, hidden: Any, dataset: Dataset, context: StepContext) -> Iterator[StepContext]:
        """The same surroundings, in which the runs are forecast when something is to be encoded.

        Where that fails or is stopped, so do they, which every page is told: the host tells only the one that queued.

        Args:
            hidden: Hidden inputs of the cache's node.
            dataset: What it encodes.
            context: Folders and device.
        """
        if hidden.prompt is not self._prompt:
            self._prompt, self._told = hidden.prompt, {}
        try:
            yield replace(context, before_encoding=lambda: self._announce(hidden, dataset, context))
        except BaseException as error:
            kind = "stopped" if isinstance(error, host.STOPS) else "failed"
            for node, run in self._told.items():
                RUNS.withdraw(node)
                host.send(f"{RUNS_FOLDER}.{kind}", {"run": run, "node": node, "message": str(error)})
            self._told.clear()
            raise

    def _announce(self, hidden: Any, dataset: Dataset, context: StepContext) -> None:
        node = hidden.unique_id
        try:
            workflow = parse_workflow(hidden.prompt, "the prompt")
            links = next((other.links for other in workflow.nodes if other.id == node), {})
            if "dataset" not in links:  # a node that another one put into the graph while it ran
                return
            known = {links["dataset"].node: DatasetOutput(dataset=dataset)}
            wanted = nodes_behind(workflow, node) - self._told.keys()
            forecasts = forecast_runs(workflow, context, known, wanted)
        except (TrainerError, ModuleNotFoundError) as error:  # a step will say so when it is its turn
            logger.debug("No forecast: %s", error)
            return
        for forecast in forecasts:
            self._told[forecast.node] = forecast.run
            context.emit(forecast.to_event())


FORECASTER = Forecaster()
"""Of this process, which executes one prompt at a time."""
