"""The pack inside a real ComfyUI on a GPU, as its users run it: generate, train, generate with the result, cancel.

    python benchmarks/in_comfyui.py --comfyui CHECKOUT --scratch DIR --out rows.jsonl [--card 12] [--flags=--lowvram]

CHECKOUT is a folder of ComfyUI whose requirements this Python has; the pack is linked into its own folder of custom
nodes below DIR, which takes 11 GB. Each row is a prompt queued by ComfyUI's API: whether it ended as it should and the
server lived, seconds, the most memory that the driver counted beside what was in use before the server, and of pictures
how far they are from the ones of the row named, in 255ths (mean and largest).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lumina2_trainer.benchmarks.cards import NUM_LAYERS
from lumina2_trainer.benchmarks.gpu_memory import used_gib, watch_gpu_memory
from lumina2_trainer.benchmarks.small_cards import CARDS, emulated
from PIL import Image

PACK_DIR = Path(__file__).resolve().parent.parent
PORT = 8199
SECONDS_TO_START = 120.0
POLL_SECONDS = 0.3
PROMPT, SEED, NUM_STEPS, GUIDANCE = "a red house", 1, 8, 4.0
SIDE = 1024
Graph = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running ComfyUI."""

    process: subprocess.Popen[bytes]
    output_dir: Path

    def request(self, path: str, body: Any = None) -> Any:
        """The answer of an HTTP request, decoded if it is JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        try:
            return json.loads(text)
        except ValueError:
            return text.decode(errors="replace")

    def run(self, graph: Graph, timeout_seconds: float, is_due: Callable[[], bool] | None = None) -> tuple[str, str]:
        """Queue a prompt and wait for its end.

        Args:
            graph: In the API's format.
            timeout_seconds: After which it is given up.
            is_due: Whether to press Cancel now.

        Returns:
            "success", "error", "interrupted" or "the server died", and why.
        """
        queued = self.request("/prompt", {"prompt": graph, "client_id": "benchmark"})
        if not isinstance(queued, dict) or queued.get("node_errors") or "prompt_id" not in queued:
            return "refused", str(queued)[:400]
        deadline, has_cancelled = time.monotonic() + timeout_seconds, False
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return "the server died", f"exit status {self.process.returncode}"
            if is_due is not None and not has_cancelled and is_due():
                has_cancelled = True
                self.request("/interrupt", {})
            history = self._history(queued["prompt_id"])
            if history is not None:
                return _end_of(history["status"]["messages"], history["status"]["status_str"])
            time.sleep(POLL_SECONDS)
        self.request("/interrupt", {})
        return "no end", f"after {timeout_seconds:.0f} s"

    def _history(self, prompt_id: str) -> Any:
        try:
            return self.request(f"/history/{prompt_id}").get(prompt_id)
        except (OSError, AttributeError):  # busy, or gone
            return None

    def newest(self, prefix: str) -> Image.Image | None:
        """The newest picture that Save Image wrote under a prefix."""
        paths = sorted(self.output_dir.glob(f"{prefix}_*.png"))
        return Image.open(paths[-1]).convert("RGB") if paths else None


def _end_of(messages: list[tuple[str, Mapping[str, Any]]], status: str) -> tuple[str, str]:
    for name, data in messages:
        if name == "execution_interrupted":
            return "interrupted", ""
        if name == "execution_error":
            return "error", f"{data.get('node_type')}: {data.get('exception_message')}".strip()
    return status, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a checkout")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for base, pictures and all that is written")
    parser.add_argument("--out", type=Path, help="file to which each row is added as a line of JSON")
    parser.add_argument("--card", choices=CARDS, help="GB on the box of the card to emulate; the whole GPU by default")
    parser.add_argument("--flags", default="", help="more flags for ComfyUI")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a training")
    parser.add_argument("--timeout", type=float, default=170, help="seconds that a prompt may take")
    options = parser.parse_args()
    base = prepare(options.scratch)
    card = nullcontext(dict(os.environ)) if options.card is None else emulated(CARDS[options.card])
    with card as environment:
        measure(options, base, environment)


def prepare(scratch: Path) -> str:
    """Write base and pictures, and the folders that ComfyUI expects; gives the base's name."""
    from lumina2_trainer.benchmarks.base_file import ensure_base_file
    from lumina2_trainer.benchmarks.pictures import PHOTO_SIZES, write_photos

    base = ensure_base_file(scratch / "models" / "checkpoints", num_layers=NUM_LAYERS).name
    if not (scratch / "input" / "set").exists():
        write_photos(scratch / "input" / "set", 8, PHOTO_SIZES)
    for name in ("output", "user", "custom_nodes", "frontend"):
        (scratch / name).mkdir(exist_ok=True)
    link = scratch / "custom_nodes" / "lumina2-trainer"
    if not link.exists():
        link.symlink_to(PACK_DIR)
    return base


def measure(options: argparse.Namespace, base: str, environment: Mapping[str, str]) -> None:
    """All rows in one server."""
    before = used_gib()
    where = f"{options.comfyui.name} {options.flags or 'default flags'} {options.card or 'whole'} {options.precision}"
    print(f"{where}\n{'row':18} {'ended':>12} {'seconds':>8} {'GiB':>6} {'apart':>12}  why", flush=True)
    pictures: dict[str, Image.Image | None] = {}
    with running(options, environment) as server:
        for name in options.rows:
            server.request("/free", {"unload_models": False, "free_memory": True})  # results of rows before, not models
            row, started = ROWS[name], time.perf_counter()
            graph = row.make(base, options)
            with watch_gpu_memory(options.scratch / "memory.csv") as peaks_gib:
                ended, why = server.run(graph, options.timeout, row.is_due and (lambda: row.is_due(options)))  # noqa: B023
            seconds = time.perf_counter() - started
            pictures[name] = server.newest(row.picture) if row.picture else None
            apart = distance(pictures[name], pictures.get(row.like) or _beside(server, row.like))
            found = {
                "where": where,
                "row": name,
                "ended": ended,
                "is_well": ended == row.expected,
                "seconds": seconds,
                "driver_gib": max(peaks_gib, default=0.0) - before,
                "apart": apart,
                "why": why,
            }
            report(found, options.out)
            if ended == "the server died":
                break


def _beside(server: Server, prefix: str) -> Image.Image | None:
    """A picture of the same prompt."""
    return server.newest(prefix) if prefix else None


@contextmanager
def running(options: argparse.Namespace, environment: Mapping[str, str]) -> Iterator[Server]:
    """A ComfyUI with this pack, until the block ends."""
    scratch = options.scratch
    arguments = ["--listen", "127.0.0.1", "--port", str(PORT), "--base-directory", str(scratch)]
    arguments += ["--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
    arguments += ["--front-end-root", str(scratch / "frontend"), *options.flags.split()]
    with (scratch / "comfyui.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "main.py", *arguments],
            cwd=options.comfyui,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )
    server = Server(process=process, output_dir=scratch / "output")
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                server.request("/system_stats")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((scratch / "comfyui.log").read_text(errors="replace")[-2000:]) from None
                time.sleep(0.5)
        yield server
    finally:
        process.kill()
        process.wait()


def distance(a: Image.Image | None, b: Image.Image | None) -> tuple[float, int] | None:
    """Mean and largest difference of two pictures in 255ths."""
    if a is None or b is None:
        return None
    difference = np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16))
    return float(difference.mean()), int(difference.max())


def report(row: Mapping[str, Any], out: Path | None) -> None:
    """Print a row, and add it to the file."""
    apart = "-" if row["apart"] is None else f"{row['apart'][0]:.2f}, {row['apart'][1]}"
    ended = row["ended"] if row["is_well"] else row["ended"].upper()
    print(
        f"{row['row']:18} {ended:>12} {row['seconds']:8.1f} {row['driver_gib']:6.2f} {apart:>12}  {row['why'][:300]}",
        flush=True,
    )
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def node(class_type: str, **inputs: Any) -> Graph:
    return {"class_type": class_type, "inputs": inputs}


def widgets(kind: str, **changed: Any) -> Graph:
    """A node of this pack with its defaults."""
    from lumina2_trainer.trainer_core.workflow.nodes import NODE_STEPS

    return node(kind, **{**asdict(NODE_STEPS[kind].settings()), **changed})


def generate(base: str, options: argparse.Namespace) -> Graph:
    """ComfyUI's own nodes alone."""
    return {"load": node("CheckpointLoaderSimple", ckpt_name=base), **sampling(["load", 0], ["load", 1], ["load", 2])}


def sampling(model: list[Any], clip: list[Any], vae: list[Any], prefix: str = "generated") -> Graph:
    """KSampler and what it needs, saved under a prefix."""
    return {
        "positive": node("CLIPTextEncode", text=PROMPT, clip=clip),
        "negative": node("CLIPTextEncode", text="", clip=clip),
        "empty": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
        "sampler": node(
            "KSampler",
            seed=SEED,
            steps=NUM_STEPS,
            cfg=GUIDANCE,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            model=model,
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=vae),
        "save": node("SaveImage", filename_prefix=prefix, images=["decode", 0]),
    }


def prompts(kind: str, **changed: Any) -> Graph:
    """Widgets that draw what `sampling` does."""
    same = {"prompts": PROMPT, "width": SIDE, "height": SIDE, "num_inference_steps": NUM_STEPS, "seed": SEED}
    return widgets(kind, **same, guidance_scale=GUIDANCE, **changed)


def training(base: str, options: argparse.Namespace, *, run_name: str, kind: str = "Lumina2TrainLoRA") -> Graph:
    """Load, dataset, caches, prompts and a Train node."""
    return {
        "model": widgets("Lumina2Load", base=base, precision=options.precision),
        "dataset": widgets("Lumina2DatasetFolder", folder="set", resolution=SIDE),
        "latents": widgets("Lumina2CacheLatents", model=["model", 0], dataset=["dataset", 0]),
        "embeds": widgets(
            "Lumina2CacheTextEmbeds",
            model=["model", 0],
            dataset=["dataset", 0],
            validation=["prompts", 0],
            system_prompt="none",
        ),
        "prompts": prompts("Lumina2ValidationPrompts", every_num_steps=10),
        "train": widgets(
            kind,
            model=["model", 0],
            latents=["latents", 0],
            embeds=["embeds", 0],
            validation=["prompts", 0],
            steps=options.steps,
            batch_size=1,
            run_name=run_name,
        ),
    }


def train_then_generate(base: str, options: argparse.Namespace) -> Graph:
    """Train a LoRA, draw by KSampler with it, and save its last preview."""
    inference = node("Lumina2Inference", model=["model", 0], adapter=["train", 0], strength=1.0)
    return {
        **training(base, options, run_name="lora"),
        "inference": inference,
        **sampling(["inference", 0], ["inference", 1], ["inference", 2], prefix="trained"),
        "preview": node("SaveImage", filename_prefix="preview", images=["train", 3]),
    }


def validate(base: str, options: argparse.Namespace) -> Graph:
    """Draw the base by Validate."""
    return {
        "model": widgets("Lumina2Load", base=base, precision="bf16"),
        "validate": prompts("Lumina2Validate", model=["model", 0], system_prompt="none"),
        "save": node("SaveImage", filename_prefix="validated", images=["validate", 0]),
    }


def train_long(base: str, options: argparse.Namespace) -> Graph:
    """A training that is cancelled."""
    graph = training(base, options, run_name="cancelled")
    graph["train"]["inputs"]["steps"] = 10000
    return graph


def train_full(base: str, options: argparse.Namespace) -> Graph:
    """Train the model's own weights for a few steps."""
    graph = training(base, options, run_name="full", kind="Lumina2TrainFull")
    graph["train"]["inputs"]["steps"] = 6
    return graph


def train_two(base: str, options: argparse.Namespace) -> Graph:
    """Two Train nodes on the same caches."""
    graph = training(base, options, run_name="first")
    second = {**graph["train"]["inputs"], "run_name": "second", "seed": 7}
    return {**graph, "second": node("Lumina2TrainLoRA", **second)}


def has_started(options: argparse.Namespace) -> bool:
    """The run that is cancelled has made its folder: it is loading the model."""
    return (options.scratch / "output" / "lumina2_trainer" / "cancelled").exists()


def has_steps(options: argparse.Namespace) -> bool:
    """The run that is cancelled has made some steps."""
    log = options.scratch / "output" / "lumina2_trainer" / "cancelled" / "log.jsonl"
    return log.exists() and log.read_bytes().count(b"\n") >= 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt, and what is expected of it."""

    make: Callable[[str, argparse.Namespace], Graph]
    expected: str = "success"
    picture: str = ""
    """Prefix of the picture that is compared."""
    like: str = ""
    """Row, or prefix of a picture, that it should be like."""
    is_due: Callable[[argparse.Namespace], bool] | None = None
    """Whether to press Cancel."""


ROWS: dict[str, Row] = {
    "generate": Row(make=generate, picture="generated"),
    "train-generate": Row(make=train_then_generate, picture="trained", like="preview"),
    "generate-again": Row(make=generate, picture="generated", like="generate"),
    "cancel-loading": Row(make=train_long, expected="interrupted", is_due=has_started),
    "cancel-steps": Row(make=train_long, expected="interrupted", is_due=has_steps),
    "train-again": Row(make=train_then_generate),
    "two-trainings": Row(make=train_two),
    "train-full": Row(make=train_full),
    "validate": Row(make=validate, picture="validated", like="generate"),
    "generate-at-last": Row(make=generate, picture="generated", like="generate"),
}


if __name__ == "__main__":
    main()
