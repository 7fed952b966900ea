"""Caption Table and Dataset From Images in a real host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from lumina2_trainer.trainer_core.cli.main import main
from PIL import Image

from .checkouts import Host
from .prompts import training_prompt, write_tiny_files
from .server import HostServer, Outcome, start_server

FILES = ("one.png", "two.png")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def made_pictures(server: HostServer, name: str, **settings: Any) -> dict[str, Any]:
    """A batch of two pictures as a dataset, with a table of its captions."""
    for number, file in enumerate(FILES):
        pixels = np.random.default_rng(number).integers(0, 256, (72, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(server.base_dir / "input" / file)
    values = {"captions": "a red disc\na blue disc", "resolution": 64, "aspect": "buckets", "trigger_words": "sks"}
    return {
        "load": training_prompt()["load"],
        "one": node("LoadImage", image=FILES[0]),
        "two": node("LoadImage", image=FILES[1]),
        "both": node("ImageBatch", image1=["one", 0], image2=["two", 0]),
        "made": node("Lumina2DatasetFromImages", images=["both", 0], name=name, repeats=1, **{**values, **settings}),
        "table": node(
            "Lumina2CaptionTable",
            dataset=["made", 0],
            model=["load", 0],
            system_prompt="none",
            custom_system_prompt="",
        ),
        "text": node("PreviewAny", source=["table", 1]),
    }


def shown(outcome: Outcome, name: str) -> dict[str, Any]:
    """What a node shows."""
    (data,) = [data for data in outcome.of_kind("executed") if data["node"] == name]
    return data["output"]


def sets_of(server: HostServer, name: str) -> list[Path]:
    return list((server.output_dir / "lumina2_trainer" / "datasets" / name).glob("[!.]*"))


def run(server: HostServer, prompt: dict[str, Any]) -> Outcome:
    outcome = server.run_prompt(prompt)
    assert outcome.kind == "execution_success", json.dumps(outcome.data)
    return outcome


def test_pictures_of_the_graph_become_a_dataset_that_trains(server: HostServer) -> None:
    prompt = made_pictures(server, "trained")
    training = training_prompt(run_name="on_made_pictures", steps=2)
    prompt |= {name: training[name] for name in ("latents", "embeds", "prompts", "train")}
    for name in ("latents", "embeds"):
        prompt[name]["inputs"]["dataset"] = ["table", 0]
    outcome = run(server, prompt)
    report = shown(outcome, "made")["text"][0]
    assert "Pictures used: 2" in report
    assert len(shown(outcome, "made")["images"]) == 1
    assert (server.output_dir / "lumina2_trainer" / "on_made_pictures" / "final" / "adapter.safetensors").is_file()
    (folder,) = sets_of(server, "trained")
    assert [path.read_text("utf-8") for path in sorted(folder.glob("*.txt"))] == ["a red disc", "a blue disc"]
    first = sorted(folder.glob("*.png"))[0]
    with Image.open(first) as written, Image.open(server.base_dir / "input" / "one.png") as given:
        assert np.array_equal(np.asarray(written), np.asarray(given))


def test_table_shows_captions_with_tokens(server: HostServer) -> None:
    outcome = run(server, made_pictures(server, "shown", captions="a red disc\n" + "a blue disc " * 200))
    (table,) = shown(outcome, "table")["caption_table"]
    assert (table["unit"], table["limit"], table["total"]) == ("tokens", 256, 2)
    assert [row["captions"][0][:15] for row in table["rows"]] == ["sks, a red disc", "sks, a blue dis"]
    assert [row["marks"] for row in table["rows"]] == [[], ["long"]]
    text = shown(outcome, "text")["text"][0]
    assert text.splitlines()[0].split("\t") == ["picture", "bucket", "tokens", "marks", "caption"]
    assert len(text.splitlines()) == 3


def test_wrong_number_of_captions_is_one_sentence(server: HostServer) -> None:
    refused = server.run_prompt(made_pictures(server, "refused", captions="one\ntwo\nthree"))
    assert refused.kind == "execution_error"
    assert refused.data["exception_message"].startswith("captions has 3 lines for 2 pictures")
    assert refused.data["node_id"] == "made"
    assert sets_of(server, "refused") == []


def test_list_of_pictures_is_one_dataset(server: HostServer) -> None:
    prompt = made_pictures(server, "listed")
    prompt["list"] = node("RebatchImages", images=["both", 0], batch_size=1)
    prompt["made"]["inputs"]["images"] = ["list", 0]
    run(server, prompt)
    (folder,) = sets_of(server, "listed")
    assert [path.read_text("utf-8") for path in sorted(folder.glob("*.txt"))] == ["a red disc", "a blue disc"]


def test_unchanged_pictures_are_not_written_or_read_again(server: HostServer) -> None:
    prompt = made_pictures(server, "cached")
    run(server, prompt)
    (cached,) = run(server, prompt).of_kind("execution_cached")
    assert {"made", "table"} <= set(cached["nodes"])


def test_deleted_pictures_are_written_again(server: HostServer) -> None:
    prompt = made_pictures(server, "deleted")
    run(server, prompt)
    (folder,) = sets_of(server, "deleted")
    shutil.rmtree(folder)
    run(server, prompt)
    assert sets_of(server, "deleted") == [folder]


def test_replaced_pictures_are_written_again_where_the_host_remembers_old_outputs(host: Host, tmp_path: Path) -> None:
    write_tiny_files(tmp_path)
    with start_server(host, tmp_path, "--cache-lru", "100") as server:
        first = made_pictures(server, "replaced")
        run(server, first)
        (folder,) = sets_of(server, "replaced")
        run(server, made_pictures(server, "replaced", captions="one\ntwo"))
        assert sets_of(server, "replaced") != [folder]
        run(server, first)
        assert sets_of(server, "replaced") == [folder]


def test_same_workflow_runs_without_the_host_on_what_it_wrote(server: HostServer, tmp_path: Path) -> None:
    prompt = made_pictures(server, "headless")
    run(server, prompt)
    before = sets_of(server, "headless")
    prompt["embeds"] = node("Lumina2CacheTextEmbeds", model=["load", 0], dataset=["table", 0])
    (tmp_path / "workflow.json").write_text(json.dumps(prompt), "utf-8")
    folders = {"--output": server.output_dir, "--models": server.base_dir / "models"}
    arguments = [str(part) for pair in folders.items() for part in pair]
    assert main(["run", str(tmp_path / "workflow.json"), "--device", "cpu", *arguments]) == 0
    assert sets_of(server, "headless") == before
