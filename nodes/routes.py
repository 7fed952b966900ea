"""HTTP routes: the state of a run, and actions asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from . import host
from .live_runs import RUNS
from .run_state import draws_pictures, find_newest_run, is_run_name, read_state

ACTIONS = ("stop", "save", "validate")


def add_routes() -> None:
    """Register the routes with the host's server; it serves them below /api too."""
    routes = host.server_routes()
    routes.get("/lumina2_trainer/runs/{run}")(get_run)
    for action in ACTIONS:
        routes.post(f"/lumina2_trainer/runs/{{run}}/{action}")(_post_action(action))


async def get_run(request: web.Request) -> web.Response:
    """State of a run; with ?newest=1 of the last one written among `run`, `run-2`, `run-3`, ..., or null.

    With &node=5 as well, those that this node trained come first, and before them the forecast of the one that it will
    train once its caches are full; a node in several places gives each of its ids.
    """
    run = request.match_info["run"]
    if not is_run_name(run):
        return web.json_response({"error": f"{run!r} is not a run name"}, status=400)
    is_search, nodes = bool(request.query.get("newest")), request.query.getall("node", [])
    if is_search and host.is_executing() and (forecast := RUNS.forecast_of(nodes, run)):
        return web.json_response(forecast)
    if is_search:
        own = RUNS.runs_of(nodes)
        run = await asyncio.to_thread(find_newest_run, host.runs_dir(), run, own)
    # In a thread, because the log of a long run takes its time and the server has one event loop.
    state = await asyncio.to_thread(read_state, host.runs_dir() / run, RUNS.snapshot(run), host.view_of)
    if state is None and not is_search:
        return web.json_response({"error": f"there is no run {run!r}"}, status=404)
    return web.json_response(state)


def _post_action(action: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def post(request: web.Request) -> web.Response:
        # A page of another origin can't send JSON without asking first, so it can't act in the user's name.
        if request.content_type != "application/json":
            return web.json_response({"error": "send Content-Type: application/json"}, status=415)
        run = request.match_info["run"]
        if not is_run_name(run):
            return web.json_response({"error": f"{run!r} is not a run name"}, status=400)
        if refusal := await asyncio.to_thread(_ask, run, action):
            return web.json_response({"error": refusal}, status=409)
        return web.json_response({"run": run, "asked": action})

    return post


def _ask(run: str, action: str) -> str:
    """Ask a run for an action; why that cannot be done, or an empty text."""
    if action == "validate" and RUNS.snapshot(run) and not draws_pictures(host.runs_dir() / run):
        return f"run {run!r} has no validation prompts: connect Validation Prompts to Train and queue it again"
    return "" if RUNS.ask(run, action) else f"run {run!r} is not running"
