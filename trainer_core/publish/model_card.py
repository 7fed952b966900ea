"""The page of a model on the hub: what it is, what it draws, how to use it, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TAGS = ("lumina2", "text-to-image", "comfyui", "lumina2-trainer")
PROMPT_START = " <Prompt Start> "
"""Between system prompt and prompt (Lumina-Image 2.0)."""


@dataclass(frozen=True, kw_only=True)
class CardPicture:
    """A validation picture in the repository."""

    path: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class CardDataset:
    """One folder of the dataset."""

    name: str
    num_pictures: int
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says. No paths, no file names of the dataset, no captions."""

    title: str
    repo_id: str
    base_model: str
    """The base's repository on the hub."""
    base_name: str
    """File the base was read from."""
    is_adapter: bool
    license: str
    note: str
    not_for_all_audiences: bool
    trigger_words: str
    system_prompt: str
    num_steps: int
    settings: Mapping[str, str]
    """Settings of the job by "group/name"."""
    sampler: Mapping[str, str]
    """How the pictures were drawn; empty without pictures."""
    datasets: Sequence[CardDataset]
    versions: Mapping[str, str]
    step: int = 0
    weights_file: str = ""
    """In the repository, with ComfyUI's names."""
    diffusers_file: str = ""
    """In the repository, with diffusers' names; empty if there is none."""
    pictures: Sequence[CardPicture] = field(default_factory=tuple)


def write_card(facts: CardFacts) -> str:
    """The text of README.md."""
    parts = [
        f"---\n{_metadata(facts)}\n---",
        f"# {facts.title}",
        _summary(facts),
        facts.note.strip(),
        _gallery(facts),
        _usage(facts),
        _training(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    audience = ("not-for-all-audiences",) if facts.not_for_all_audiences else ()
    data = ModelCardData(
        license=facts.license or None,
        base_model=facts.base_model,
        base_model_relation="adapter" if facts.is_adapter else "finetune",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*(("lora",) if facts.is_adapter else ()), *TAGS, *audience],
        instance_prompt=facts.trigger_words or None,
        widget=[{"text": p.prompt or " ", "output": {"url": p.path}} for p in facts.pictures] or None,
    )
    return data.to_yaml().strip()


def _summary(facts: CardFacts) -> str:
    kind = "A LoRA for" if facts.is_adapter else "A fine-tune of"
    lines = [f"{kind} [{facts.base_model}](https://huggingface.co/{facts.base_model}), trained with Lumina2 Trainer."]
    if facts.step < facts.num_steps:
        lines.append(f"Training goes on: this is step {facts.step} of {facts.num_steps}.")
    if facts.trigger_words:
        lines.append(f"Trigger words: {_code(facts.trigger_words)}.")
    return "\n".join(lines)


def _gallery(facts: CardFacts) -> str:
    if not facts.pictures:
        return ""
    drawn = _table(("sampler", ""), facts.sampler.items())
    return f"## Pictures\n\n<Gallery />\n\n{drawn}"


def _usage(facts: CardFacts) -> str:
    return f"## Use\n\n### ComfyUI\n\n{_comfyui_usage(facts)}" + (
        f"\n\n### diffusers\n\n```python\n{_diffusers_snippet(facts)}\n```" if _has_snippet(facts) else ""
    )


def _comfyui_usage(facts: CardFacts) -> str:
    folder, node = ("loras", "Load LoRA") if facts.is_adapter else ("diffusion_models", "Load Diffusion Model")
    text = f"Put `{facts.weights_file}` into `models/{folder}` and open it with {node}."
    if facts.system_prompt:
        start = facts.system_prompt + PROMPT_START
        text += f" Begin the prompt with this, and leave the negative prompt without it:\n\n```\n{start}\n```"
    return text


def _has_snippet(facts: CardFacts) -> bool:
    return bool(facts.diffusers_file) or not facts.is_adapter


def _diffusers_snippet(facts: CardFacts) -> str:
    """Python that draws one picture; `prompt` holds the first picture's prompt or the trigger words."""
    prompt = facts.pictures[0].prompt if facts.pictures else facts.trigger_words or "a photo of a cat"
    load = _load_adapter(facts) if facts.is_adapter else _load_model(facts)
    arguments = [
        "prompt",
        f"system_prompt={facts.system_prompt!r}",
        *(f"{name}={facts.sampler[name]}" for name in SNIPPET_ARGUMENTS if name in facts.sampler),
    ]
    call = "".join(f"    {argument},\n" for argument in arguments)
    if not facts.system_prompt:
        load += "\n# Trained without a system prompt; the pipeline still puts its <Prompt Start> before the prompt."
    return f'{load}\nprompt = {prompt!r}\nimage = pipe(\n{call}).images[0]\nimage.save("picture.png")'


SNIPPET_ARGUMENTS = ("width", "height", "num_inference_steps", "guidance_scale")
"""Sampler settings that have the same name in Lumina2Pipeline."""


def _load_adapter(facts: CardFacts) -> str:
    return (
        "import torch\n"
        "from diffusers import Lumina2Pipeline\n\n"
        f"pipe = Lumina2Pipeline.from_pretrained({facts.base_model!r}, torch_dtype=torch.bfloat16)\n"
        f"pipe.load_lora_weights({facts.repo_id!r}, weight_name={facts.diffusers_file!r})\n"
        'pipe.to("cuda")\n'
    )


def _load_model(facts: CardFacts) -> str:
    return (
        "import torch\n"
        "from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel\n"
        "from huggingface_hub import hf_hub_download\n\n"
        "transformer = Lumina2Transformer2DModel.from_single_file(\n"
        f"    hf_hub_download({facts.repo_id!r}, {facts.weights_file!r}),\n"
        f"    config={facts.base_model!r},\n"
        '    subfolder="transformer",\n'
        "    torch_dtype=torch.bfloat16,\n"
        ")\n"
        "pipe = Lumina2Pipeline.from_pretrained(\n"
        f"    {facts.base_model!r}, transformer=transformer, torch_dtype=torch.bfloat16\n"
        ")\n"
        'pipe.to("cuda")\n'
    )


def _training(facts: CardFacts) -> str:
    trained = [("base file", facts.base_name), ("steps", f"{facts.step} of {facts.num_steps}"), *facts.settings.items()]
    datasets = [
        (d.name, d.num_pictures, ", ".join(f"{name} {value}" for name, value in d.settings.items()))
        for d in facts.datasets
    ]
    return "\n\n".join(
        [
            "## Training",
            _table(("setting", "value"), trained),
            "### Dataset",
            _table(("folder", "pictures", "settings other than the defaults"), datasets),
            "### Versions",
            _table(("package", "version"), facts.versions.items()),
        ]
    )


def _table(head: Sequence[str], rows: object) -> str:
    lines = [list(head), ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]  # type: ignore[attr-defined]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|") or "-"


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
