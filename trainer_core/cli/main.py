"""The command `lumina2-trainer`."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OtherProcessFailed, StopTraining, TrainerError
from ..launch import launched_index, num_launched

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    from ..context import StepContext
    from ..workflow.file import Workflow

EXIT_STOPPED = 130
"""As a shell reports a program ended by Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    choose_allocator(os.environ)
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["child"]:
        from .child import run_child

        return run_child()
    parser = _make_parser()
    options = parser.parse_args(arguments)
    is_main = launched_index() == 0
    level = logging.INFO if is_main else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        if num_launched() > 1 and options.run is not _run_workflow:
            raise TrainerError("only the command run is for several processes: call this one without a launcher")
        options.run(options)
    except OtherProcessFailed as error:
        if launched_index() < 2:  # the second one too, for the main one may be gone
            print(f"lumina2-trainer: {error}", file=sys.stderr)
        return 1
    except TrainerError as error:
        print(f"lumina2-trainer: {error}", file=sys.stderr)
        return 1
    except StopTraining:
        if is_main:
            print("Stopped. What was done is kept; the same command goes on from there.", file=sys.stderr)
        return EXIT_STOPPED
    return 0


def choose_allocator(environment: MutableMapping[str, str]) -> None:
    """Let PyTorch's allocator grow its segments, which leaves it 0.4 to 1.3 GiB less that it cannot use.

    Must be called before torch is imported. What the user has chosen stays.

    Args:
        environment: Variables of this process.
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the second since torch 2.9, which warns of the first
    if sys.platform != "linux" or any(environment.get(name) for name in names):
        return
    version = tuple(int(part) for part in importlib.metadata.version("torch").split(".")[:2])
    environment[names[version >= (2, 9)]] = "expandable_segments:True"


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lumina2-trainer", description="Train Lumina2 without ComfyUI.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a workflow file saved in ComfyUI (canvas or API format)")
    _add_workflow(run)
    _add_common(run, _run_workflow)

    plan = commands.add_parser("plan", help="say what memory and time the runs of a workflow file will take")
    _add_workflow(plan)
    _add_common(plan, _plan_workflow)

    demo = commands.add_parser("demo", help="train a LoRA on the bundled model and pictures")
    _add_common(demo, _run_demo)

    convert = commands.add_parser("convert", help="convert an adapter of any naming to ComfyUI's or diffusers'")
    convert.add_argument("file", type=Path)
    convert.add_argument("-o", "--output", type=Path, required=True)
    convert.add_argument("--to", choices=("comfyui", "diffusers"), required=True)
    convert.set_defaults(run=_convert)

    importer = commands.add_parser("import-simpletuner", help="turn SimpleTuner's configuration into a workflow file")
    importer.add_argument("config", type=Path, metavar="CONFIG.json")
    importer.add_argument(
        "backends",
        type=Path,
        nargs="?",
        metavar="MULTIDATABACKEND.json",
        help="the data backend file; the one that CONFIG.json names by default",
    )
    importer.add_argument("-o", "--output", type=Path, required=True, metavar="WORKFLOW.json")
    importer.set_defaults(run=_import_simpletuner)
    return parser


def _add_workflow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", type=Path, metavar="WORKFLOW.json")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="replace a widget's value; NODE is an id or a type",
    )
    parser.add_argument(
        "--root", action="append", default=[], type=Path, metavar="DIR", help="folder that datasets may lie in"
    )
    parser.add_argument(
        "--models", action="append", default=[], type=Path, metavar="DIR", help="a ComfyUI models folder"
    )


def _add_common(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR", help="where runs and caches go")
    parser.add_argument("--device", default="", help="cuda, cuda:1, mps, cpu; the fastest there is by default")
    parser.set_defaults(run=run)


def _run_workflow(options: argparse.Namespace) -> None:
    from ..processes import joined
    from ..workflow.forecast import announcing_runs
    from ..workflow.runner import run_workflow
    from .console import stop_on_signals
    from .headless import taking_part

    with stop_on_signals() as should_stop:
        workflow, context = _open_workflow(options, should_stop)
        with joined(context.device) as processes:
            run_workflow(workflow, announcing_runs(workflow, taking_part(context, processes)))


def _plan_workflow(options: argparse.Namespace) -> None:
    from ..workflow.forecast import plan_workflow
    from .console import stop_on_signals

    with stop_on_signals() as should_stop:
        print(plan_workflow(*_open_workflow(options, should_stop)))


def _open_workflow(options: argparse.Namespace, should_stop: Callable[[], bool]) -> tuple[Workflow, StepContext]:
    """The file with the values typed, and the surroundings it is run in."""
    from ..workflow.file import read_workflow, with_values
    from .console import ConsoleReporter
    from .headless import find_typed_paths, make_context, split_assignments

    assignments = split_assignments(options.set)
    paths = find_typed_paths(assignments)
    workflow = with_values(read_workflow(options.workflow), {**assignments, **paths})
    for node in workflow.left_out if launched_index() == 0 else ():
        print(f"left out: node {node} needs ComfyUI", file=sys.stderr)
    context = make_context(
        output_dir=options.output,
        device=options.device,
        roots=options.root,
        models=options.models,
        trusted=paths.values(),
        emit=ConsoleReporter(),
        should_stop=should_stop,
        workflow=options.workflow.read_text(encoding="utf-8"),
    )
    return workflow, context


def _run_demo(options: argparse.Namespace) -> None:
    from .console import ConsoleReporter, stop_on_signals
    from .demo import run_demo
    from .headless import make_context

    with stop_on_signals() as should_stop:
        context = make_context(
            output_dir=options.output, device=options.device, emit=ConsoleReporter(), should_stop=should_stop
        )
        print(run_demo(context))


def _convert(options: argparse.Namespace) -> None:
    from ..adapters.foreign_lora import convert_adapter

    convert_adapter(options.file, options.output, options.to)


def _import_simpletuner(options: argparse.Namespace) -> None:
    from ..importers.simpletuner.command import import_simpletuner

    print(import_simpletuner(options.config, options.backends, options.output))
    print(f"\nWritten to {options.output}: open it in ComfyUI, or run it by lumina2-trainer run.")
