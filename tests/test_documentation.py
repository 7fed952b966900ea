"""README and docs say what is: links lead somewhere, commands work, events, routes and errors are those of the code."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from lumina2_trainer.nodes.run_state import read_state
from lumina2_trainer.trainer_core.cli import main as command_line
from lumina2_trainer.trainer_core.context import PACK_DIR
from lumina2_trainer.trainer_core.events import EventKind
from lumina2_trainer.trainer_core.lumina2.memory.estimate import Measures
from lumina2_trainer.trainer_core.lumina2.memory.plan import MemoryPlan
from lumina2_trainer.trainer_core.run.folder import RunFolder
from lumina2_trainer.trainer_core.run.plan import RunPlan
from lumina2_trainer.trainer_core.run_names import BASE
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.validation.confidence import estimate_mean
from lumina2_trainer.trainer_core.validation.held_out_log import HeldOutLine, Verdict
from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

DOCS = PACK_DIR / "docs"
PAGES = [PACK_DIR / "README.md", PACK_DIR / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
SOURCES = [path for folder in ("trainer_core", "nodes") for path in sorted((PACK_DIR / folder).rglob("*.py"))]
GAP = "\0"
"""Stands for a value in a sentence of the code."""

COMMAND = r"^(?:lumina2-trainer|python custom_nodes/lumina2-trainer|accelerate .*-m lumina2_trainer) (.*)"
"""How the command line is called; the group is its arguments."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"^```\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """Names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = without_code(text_of(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        name, _, anchor = target.partition("#")
        if name.startswith("https://"):
            continue
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


@pytest.mark.parametrize("name", ["README.md", "docs/README.md"])
def test_readme_and_index_lead_to_every_page(name: str) -> None:
    index = PACK_DIR / name
    linked = {(index.parent / path).resolve() for path in re.findall(r"\]\(([^)#\s]+)", text_of(index))}
    if index.parent == PACK_DIR:  # README leads to the rest by the index
        linked |= {(DOCS / path).resolve() for path in re.findall(r"\]\(([^)#\s]+)", text_of(DOCS / "README.md"))}
        assert {path.resolve() for path in (PACK_DIR / "web" / "docs").glob("*.md")} <= linked
    assert {path.resolve() for path in DOCS.glob("*.md")} - {DOCS / "README.md"} <= linked


@pytest.mark.parametrize("page", [DOCS / "architecture.md", PACK_DIR / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_files_named_to_developers_exist(page: Path) -> None:
    for name in re.findall(r"`([\w./]*\w+\.(?:py|md|yml|toml))`", without_code(text_of(page))):
        places = [PACK_DIR / name, PACK_DIR / "trainer_core" / name]
        found = any(place.exists() for place in places) or ("/" not in name and any(PACK_DIR.rglob(name)))
        assert found, name


@each_page
def test_commands_are_understood(page: Path) -> None:
    blocks = "\n".join(code_blocks(page)).replace("\\\n", " ")
    parser = command_line._make_parser()
    for arguments in re.findall(COMMAND, blocks, re.MULTILINE):
        options = parser.parse_args(shlex.split(arguments, comments=True))  # exits where it does not understand
        for assignment in getattr(options, "set", []):
            node, _, name = assignment.partition("=")[0].partition(".")
            types = [node] if node in NODE_STEPS else list(NODE_STEPS) if node.isdigit() else []
            names = {field.name for type_ in types for field in describe_settings(NODE_STEPS[type_].settings)}
            assert name in names, assignment


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (PACK_DIR / "Makefile").read_text("utf-8"), re.MULTILINE))


@each_page
def test_make_targets_exist(page: Path) -> None:
    named = re.findall(r"^make ([\w-]+)", "\n".join(code_blocks(page)), re.MULTILINE)
    assert set(named) <= makefile_targets()


# Events and routes


def event_sections() -> dict[str, str]:
    """What the page says of each kind of event."""
    parts = re.split(r"^### lumina2_trainer\.(\w+)$", text_of(DOCS / "api.md").partition("## Routes")[0], flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def examples_of(section: str) -> list[set[str]]:
    """The fields of each example."""
    return [set(json.loads(text)) for text in re.findall(r"^```json\n(.*?)^```", section, re.DOTALL | re.MULTILINE)]


def sent_fields() -> Iterator[tuple[str, set[str]]]:
    """Kind and fields wherever the code makes an event of fields that are written out where it is made."""
    for source in (path.read_text("utf-8") for path in SOURCES):
        for function in ast.walk(ast.parse(source)) if "Event(" in source else ():
            if not isinstance(function, ast.FunctionDef):
                continue
            named: dict[str, ast.expr] = {}
            added: dict[str, set[str]] = {}
            for statement in ast.walk(function):
                for target in statement.targets if isinstance(statement, ast.Assign) else ():
                    if isinstance(target, ast.Name):
                        named[target.id] = statement.value
                    elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
                        added.setdefault(target.value.id, set()).update(constants_of([target.slice]))
            for call in ast.walk(function):
                if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Event"):
                    continue
                given = {word.arg: word.value for word in call.keywords}
                kind, data = given.get("kind"), given.get("data")
                name = data.id if isinstance(data, ast.Name) else ""
                data = named.get(name, data)
                if isinstance(kind, ast.Constant) and isinstance(data, ast.Dict):
                    yield str(kind.value), constants_of(data.keys) | added.get(name, set())


def constants_of(expressions: Iterable[ast.expr | None]) -> set[str]:
    return {str(expression.value) for expression in expressions if isinstance(expression, ast.Constant)}


def computed_fields() -> Iterator[tuple[str, set[str]]]:
    """Fields of events that are made by an object's to_json."""
    memory = MemoryPlan(measures=Measures(), sentence="", peak_bytes=1)
    plan = set(RunPlan(memory=memory, seconds=1.0, first_step=0, num_steps=1).to_json())
    yield "planned", plan
    yield "forecast", plan
    line, estimate = HeldOutLine(step=0, weights=BASE, losses={"a": 1.0}), estimate_mean([1.0, 2.0])
    yield "held_out", set(Verdict(line=line, loss=estimate, best=line, change=estimate, rise=estimate).to_json())


def test_page_has_a_section_for_every_event() -> None:
    assert set(event_sections()) == {*get_args(EventKind), "stopped"}  # the last is sent by nodes/host.py alone


def test_an_example_has_all_fields_of_each_event() -> None:
    examples = {kind: examples_of(section) for kind, section in event_sections().items()}
    written = list(sent_fields())
    assert len(written) > 8, "the code makes its events in another way: see what this test should read now"
    missing = [
        f"{kind}: {sorted(fields)}"
        for kind, fields in [*written, *computed_fields()]
        if not any(fields <= example for example in examples[kind])
    ]
    assert not missing


def test_page_names_every_field_of_the_state(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    run.job_path.write_text("{}", encoding="utf-8")
    state = read_state(tmp_path, None, lambda path: {})
    assert state is not None
    table = text_of(DOCS / "api.md").partition("### The state of a run")[2]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert documented == set(state)


def test_page_names_every_route() -> None:
    source = (PACK_DIR / "nodes" / "routes.py").read_text("utf-8")
    actions = next(
        ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "ACTIONS"
    )
    documented = re.findall(r"^\| `(GET|POST) /lumina2_trainer/runs/\{run\}/?(\w*)`", text_of(DOCS / "api.md"), re.M)
    assert documented == [("GET", ""), *(("POST", action) for action in actions)]


# Errors


@cache
def sentences_of_code() -> str:
    """All strings of the code; GAP stands for what is put in."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                found.append("".join(map(str, parts)))
    return "\n".join(found)


TROUBLES: list[str] = re.findall(r"^\*\*`(.*)`\*\*", text_of(DOCS / "troubleshooting.md"), re.MULTILINE)


def test_troubleshooting_explains_twenty_errors() -> None:
    assert len(set(TROUBLES)) == len(TROUBLES) == 20


@pytest.mark.parametrize("trouble", TROUBLES)
def test_errors_explained_are_errors_of_the_code(trouble: str) -> None:
    parts = [re.escape(part) for part in trouble.split("...")]
    assert re.search("[^\n]*?".join(parts), sentences_of_code()), trouble


# Dependencies


def test_every_dependency_has_a_reason_and_a_licence() -> None:
    project = (PACK_DIR / "pyproject.toml").read_text("utf-8")
    needed = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.DOTALL | re.MULTILINE)
    assert needed is not None and extras is not None
    names = set(re.findall(r'"([\w-]+)', needed[1] + extras[1])) - {"lumina2-trainer"}
    text = text_of(DOCS / "dependencies.md")
    rows = set(re.findall(r"^\| (?:`[\w-]+` \| )?([\w-]+) \|", text.partition("## To work on it")[0], re.MULTILINE))
    tools = set(re.findall(r"[\w-]+", text.partition("## To work on it")[2].partition("##")[0]))
    assert names <= rows | tools
