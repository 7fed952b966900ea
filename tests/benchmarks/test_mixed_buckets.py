"""Samples of many shapes and of one, and the run on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lumina2_trainer.benchmarks import shapes
from lumina2_trainer.benchmarks.compiles import CompileCounter
from lumina2_trainer.benchmarks.material import Sample
from lumina2_trainer.trainer_core.data.sizing import Bucket, list_buckets

SCRIPT = Path(shapes.__file__).parent / "mixed_buckets.py"


def make_mixed(resolution: int) -> list[Sample]:
    return shapes.mixed_samples(
        resolution, num_buckets=9, samples_per_bucket=2, max_aspect=2.5, caption_tokens=(10, 250), text_width=3
    )


@pytest.mark.parametrize("resolution", [512, 1024])
def test_buckets_spread_from_tall_to_wide_around_the_square(resolution: int) -> None:
    buckets = shapes.choose_buckets(resolution, 9, 2.5)
    aspects = [b.width / b.height for b in buckets]
    assert len(buckets) == 9 and set(buckets) <= set(list_buckets(resolution))
    assert Bucket(width=resolution, height=resolution) in buckets
    assert aspects == sorted(aspects) and aspects[0] >= 1 / 2.5 and aspects[-1] <= 2.5


@pytest.mark.parametrize("resolution", [512, 1024])
def test_fixed_samples_have_the_mean_number_of_tokens(resolution: int) -> None:
    mixed = make_mixed(resolution)
    fixed = shapes.fixed_samples(mixed, resolution, text_width=3)
    assert len({s.latents.shape for s in mixed}) == 9
    assert len({(s.latents.shape, len(s.prompt_embeds)) for s in fixed}) == 1
    assert shapes.mean_num_tokens(fixed) == pytest.approx(shapes.mean_num_tokens(mixed), abs=0.5)


def test_counter_counts_kernels_that_were_not_cached() -> None:
    counter = CompileCounter()
    for cache_hit in (False, True, False):
        counter._count_kernel(cache_hit=cache_hit, src=None)
    assert counter.num_kernels == 2


def test_command_reports_both_runs(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--steps", "22", "--output", str(output)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=environment)
    results = json.loads(output.read_text("utf-8"))["results"]
    assert results["mixed"]["shapes"] > 5 and results["fixed"]["shapes"] == 1
    ratio = results["mixed"]["median"] / results["fixed"]["median"]
    assert done.stdout.splitlines()[-1] == f"ratio {ratio:.3f}"
