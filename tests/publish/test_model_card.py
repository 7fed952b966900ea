"""The card's usage example really draws with what was uploaded, and nothing private is on the card."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from lumina2_trainer.trainer_core.lumina2.models.save import MODEL_LAYOUTS
from lumina2_trainer.trainer_core.publish.model_card import CardFacts, CardPicture, write_card
from lumina2_trainer.trainer_core.publish.settings import HubSettings
from PIL import Image

from ..full_setup import TRAIN_FULL, train_full
from ..training_setup import PROMPTS, Setup

NEVER = HubSettings(repo_id="tester/my-lora", push="never")
FACTS = CardFacts(
    title="my_lora",
    repo_id="tester/my-lora",
    base_model="Alpha-VLLM/Lumina-Image-2.0",
    base_name="lumina_2.safetensors",
    is_adapter=True,
    license="apache-2.0",
    note="Made for **tests**.",
    not_for_all_audiences=True,
    trigger_words="zwx",
    system_prompt="You are an assistant.",
    num_steps=100,
    settings={"train/rank": "16"},
    sampler={"width": "64", "guidance_scale": "4.0"},
    datasets=(),
    versions={"torch": "2.9"},
    step=50,
    weights_file="checkpoints/my_lora-000050.safetensors",
)


def draw_with_snippet(card: str, folder: Path, hub: Path, base: Path) -> Image.Image:
    """Run the card's Python on this machine's files instead of the hub's."""
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    local = {
        "'Alpha-VLLM/Lumina-Image-2.0'": repr(str(base)),
        "'tester/my-lora'": repr(str(hub)),
        '"cuda"': '"cpu"',
        "torch.bfloat16": "torch.float32",
        '"picture.png"': repr(str(folder / "picture.png")),
    }
    for there, here in local.items():
        assert there in snippet, there
        snippet = snippet.replace(there, here)
    exec(compile(snippet, "snippet", "exec"), {})
    with Image.open(folder / "picture.png") as image:
        return image.copy()


def test_snippet_for_a_lora_draws(fresh: Setup, tmp_path: Path) -> None:
    result = fresh.train(hub=NEVER, validation=PROMPTS)
    hub = Path(result.adapter.run_dir) / "hub"
    MODEL_LAYOUTS["diffusers"].write(fresh.model, tmp_path / "base", torch.float32)
    image = draw_with_snippet((hub / "README.md").read_text(), tmp_path, hub, tmp_path / "base")
    assert image.size == (PROMPTS.width, PROMPTS.height)


def test_snippet_for_a_full_model_draws(fresh: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train_full(fresh, replace(TRAIN_FULL, steps=2), hub=NEVER, validation=PROMPTS)
    hub = Path(result.model.base_path).parents[1] / "hub"
    MODEL_LAYOUTS["diffusers"].write(fresh.model, tmp_path / "base", torch.float32)
    split = torch.split

    def split_at_width(tensor: torch.Tensor, sizes: list[int], dim: int) -> tuple[torch.Tensor, ...]:
        """diffusers knows the sizes of the 2.6 B model alone."""
        if list(sizes) == [2304, 768, 768]:
            width = tensor.shape[1]
            sizes = [width, (tensor.shape[0] - width) // 2, (tensor.shape[0] - width) // 2]
        return split(tensor, sizes, dim=dim)

    monkeypatch.setattr(torch, "split", split_at_width)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo_id, name: str(Path(repo_id) / name))
    card = (hub / "README.md").read_text()
    assert "Put `model.safetensors` into `models/diffusion_models`" in card
    image = draw_with_snippet(card, tmp_path, hub, tmp_path / "base")
    assert image.size == (PROMPTS.width, PROMPTS.height)


def test_card_of_a_checkpoint_says_that_training_goes_on() -> None:
    card = write_card(FACTS)
    _, metadata, body = card.split("---\n", 2)
    head = yaml.safe_load(metadata)
    assert head["license"] == "apache-2.0"
    assert head["instance_prompt"] == "zwx"
    assert head["base_model_relation"] == "adapter"
    assert "not-for-all-audiences" in head["tags"]
    assert "this is step 50 of 100" in body
    assert "Made for **tests**." in body
    assert "You are an assistant. <Prompt Start> " in body
    assert "```python" not in body, "there is no file for diffusers yet"


def test_prompts_of_any_kind_keep_the_card_readable() -> None:
    prompt = 'a "cat": {x} | y\n---\n# no: [head](ing)'
    facts = replace(FACTS, pictures=(CardPicture(path="images/00.png", prompt=prompt),), diffusers_file="d.safetensors")
    card = write_card(facts)
    head = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert head["widget"] == [{"text": prompt, "output": {"url": "images/00.png"}}]
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    compile(snippet, "snippet", "exec")


def test_card_names_no_folder_caption_or_file_of_the_dataset(fresh: Setup) -> None:
    result = fresh.train(hub=NEVER, validation=PROMPTS)
    card = (Path(result.adapter.run_dir) / "hub" / "README.md").read_text()
    assert str(fresh.context.output_dir.parent) not in card
    assert "green" not in card, "a caption or file name that no validation prompt has"
    assert "| pictures | 5 |" in card
