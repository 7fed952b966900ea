"""What the runs of a workflow will take, before anything is encoded: from captions, picture sizes and file headers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..context import StepContext
from ..data.cache import EmbedCache, LatentCache
from ..data.cache_text_embeds import check_captions
from ..data.folder import Dataset, DatasetFolderSettings, open_dataset
from ..data.held_out import split_samples
from ..data.sample_sizes import measure_dataset
from ..data.scan import scan_dataset
from ..errors import TrainerError
from ..events import Event
from ..lumina2.encoders.prompts import MAX_PROMPT_TOKENS, UNCONDITIONAL, build_prompt, resolve_system_prompt
from ..lumina2.models.base_files import find_model_files
from ..lumina2.models.model_files import Lumina2Model
from ..run.checks import check_run
from ..run.job import TrainJob
from ..run.plan import RunPlan, format_duration, plan_run
from ..run.trained_weights import choose_trained_weights
from ..settings import describe_settings
from ..stages import caches
from ..stages.caption_table import CaptionTableSettings
from ..validation.pictures import with_prompt_library
from ..validation.settings import ValidationSettings
from .file import Workflow, WorkflowNode
from .nodes import NODE_STEPS
from .runner import check_workflow, read_settings, read_sockets

NOT_YET = LatentCache(index_path="", fingerprint=""), EmbedCache(index_path="", fingerprint="")
"""The caches of a job that is only planned."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is known of one Train node before the nodes in front of it have run."""

    node: str
    """Id of the node."""
    run: str
    """Its run_name; the run gets a number if another job has that name."""
    plan: RunPlan | None
    """None if it cannot run."""
    problem: str = ""
    """Why it cannot run."""

    def to_event(self) -> Event:
        """For the page that shows the node."""
        data = {} if self.plan is None else self.plan.to_json()
        return Event(kind="forecast", run=self.run, data={**data, "node": self.node, "message": self.problem})


@dataclass(frozen=True, kw_only=True)
class DatasetOutput:
    """Stands for the result of a node that gives a dataset."""

    dataset: Dataset


@dataclass(frozen=True, kw_only=True)
class _UnfilledEmbeds:
    """Stands for a text cache: what its prompts are made of."""

    model: Lumina2Model
    system_prompt: str
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]


def forecast_runs(
    workflow: Workflow, context: StepContext, known: Mapping[str, Any], wanted: Collection[str] | None = None
) -> list[Forecast]:
    """Plan every Train node whose inputs are known without a model's work.

    Unknown are the results of training, and datasets of pictures that are yet to be made.

    Args:
        workflow: The whole of it.
        context: Folders and device.
        known: Results of nodes that have run, by id; not of caches.
        wanted: Ids of the Train nodes to plan; None plans all.
    """
    results: dict[str, Any] = {}
    problems: dict[str, str] = {}  # of nodes that will fail, and of those behind them
    forecasts = []
    for node in workflow.nodes:
        step = NODE_STEPS[node.type]
        if node.id in known:
            results[node.id] = known[node.id]
            continue
        problem = next((problems[link.node] for link in node.links.values() if link.node in problems), "")
        is_wanted = step.make_job is not None and (wanted is None or node.id in wanted)
        if problem:
            problems[node.id] = problem
            if is_wanted:
                forecasts.append(Forecast(node=node.id, run=_run_name(node), plan=None, problem=problem))
            continue
        if any(name not in step.sockets or link.node not in results for name, link in node.links.items()):
            continue
        try:
            settings, sockets = read_settings(node), read_sockets(node, workflow, results)
            if step.run is None:
                results[node.id] = settings
            elif node.type in STAND_INS:
                results[node.id] = STAND_INS[node.type](settings, context=context, **sockets)
        except TrainerError as error:
            problems[node.id] = str(error)
            if is_wanted:
                forecasts.append(Forecast(node=node.id, run=_run_name(node), plan=None, problem=str(error)))
            continue
        if step.make_job is not None and is_wanted:
            make_job = partial(step.make_job, settings, context=context)
            forecasts.append(_forecast(node, make_job, sockets, context))
    return forecasts


def plan_workflow(workflow: Workflow, context: StepContext) -> str:
    """What every run of a workflow will take, for people.

    Raises:
        TrainerError: A setting is wrong, a file is not there, or a run cannot start.
    """
    check_workflow(workflow)
    forecasts = {forecast.node: forecast for forecast in forecast_runs(workflow, context, known={})}
    if problems := [f"{one.run}: {one.problem}" for one in forecasts.values() if one.plan is None]:
        raise TrainerError("; ".join(problems))
    lines = []
    for node in workflow.nodes:
        if NODE_STEPS[node.type].make_job is None:
            continue
        name = f"{_run_name(node)} (node {node.id})"
        plan = forecasts[node.id].plan if node.id in forecasts else None
        lines.append(f"{name}: {_describe(plan) if plan else 'known once the nodes before it have run'}")
    return "\n".join(lines) or "nothing in this workflow trains"


def _describe(plan: RunPlan) -> str:
    return f"{plan.num_steps} steps in about {format_duration(plan.seconds)}\n  {plan.memory.sentence}"


def announcing_runs(workflow: Workflow, context: StepContext) -> StepContext:
    """The same surroundings, in which every run is forecast when the first pictures or captions are to be encoded.

    If none of them can start, nothing is encoded: the step raises a TrainerError.
    """

    @functools.cache  # once
    def announce() -> None:
        forecasts = forecast_runs(workflow, context, known={})
        for forecast in forecasts:
            context.emit(forecast.to_event())
        if forecasts and all(forecast.plan is None for forecast in forecasts):
            raise TrainerError(forecasts[0].problem)

    return replace(context, before_encoding=announce)


def nodes_behind(workflow: Workflow, node_id: str) -> frozenset[str]:
    """Ids of the nodes that take something of this one, directly or not."""
    reached = {node_id}
    for node in workflow.nodes:  # each comes after those it depends on
        if any(link.node in reached for link in node.links.values()):
            reached.add(node.id)
    return frozenset(reached - {node_id})


def _forecast(
    node: WorkflowNode,
    make_job: Callable[..., TrainJob],
    sockets: dict[str, Any],
    context: StepContext,
) -> Forecast:
    dataset, embeds = sockets.pop("latents"), sockets.pop("embeds")
    try:
        latents_to_be, embeds_to_be = NOT_YET
        job = make_job(**sockets, latents=latents_to_be, embeds=embeds_to_be)
        plan = _plan(job, dataset, embeds, context)
    except TrainerError as error:
        return Forecast(node=node.id, run=_run_name(node), plan=None, problem=str(error))
    return Forecast(node=node.id, run=_run_name(node), plan=plan)


def _run_name(node: WorkflowNode) -> str:
    default = next(f.default for f in describe_settings(NODE_STEPS[node.type].settings) if f.name == "run_name")
    return str(node.values.get("run_name", default))


def _plan(job: TrainJob, dataset: Dataset, embeds: _UnfilledEmbeds, context: StepContext) -> RunPlan:
    from ..lumina2.encoders.text_encoder import load_token_counter

    scanned = scan_dataset(dataset, context)
    check_captions(scanned.pictures)
    count = load_token_counter(Path(embeds.model.text_encoder_path))
    samples = measure_dataset(
        scanned, lambda caption: min(count(build_prompt(caption, embeds.system_prompt)), MAX_PROMPT_TOKENS)
    )
    trained, held_out = split_samples(samples, job.validation.held_out_share if job.validation else 0.0)
    check_run(
        job,
        samples=trained,
        held_out=held_out,
        prompts=embeds.prompts,
        negative_prompts=embeds.negative_prompts,
        device=context.device,
    )
    weights = choose_trained_weights(job)
    weights.check(Path(job.model.base_path))
    sizes, held_out_sizes = ([sample.size for sample in some] for some in (trained, held_out))
    return plan_run(job, weights, sizes, held_out_sizes, context.device)


def _open_folder(
    settings: DatasetFolderSettings, *, dataset: Dataset | None = None, context: StepContext
) -> DatasetOutput:
    return DatasetOutput(dataset=open_dataset(settings, earlier=dataset, context=context))


def _pass_on(
    settings: CaptionTableSettings, *, dataset: Dataset, model: Lumina2Model | None = None, context: StepContext
) -> DatasetOutput:
    return DatasetOutput(dataset=dataset)


def _plan_latents(
    settings: caches.CacheLatentsSettings, *, model: Lumina2Model, dataset: Dataset, context: StepContext
) -> Dataset:
    return dataset


def _plan_embeds(
    settings: caches.CacheTextEmbedsSettings,
    *,
    model: Lumina2Model,
    dataset: Dataset,
    validation: ValidationSettings | None = None,
    context: StepContext,
) -> _UnfilledEmbeds:
    prompts = validation and with_prompt_library(validation, context)
    return _UnfilledEmbeds(
        model=model,
        system_prompt=resolve_system_prompt(settings.system_prompt, settings.custom_system_prompt),
        prompts=prompts.prompt_list if prompts else (),
        negative_prompts=(UNCONDITIONAL, prompts.negative_prompt if prompts else UNCONDITIONAL),
    )


STAND_INS: dict[str, Callable[..., Any]] = {
    "Lumina2Load": find_model_files,
    "Lumina2DatasetFolder": _open_folder,
    "Lumina2CaptionTable": _pass_on,
    "Lumina2CacheLatents": _plan_latents,
    "Lumina2CacheTextEmbeds": _plan_embeds,
}
"""What is called in place of the steps of nodes that look into pictures or load models, by type."""
