"""Settings of nodes as a workflow file of the canvas, with positions, links and groups."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.folder import DatasetFolderSettings
from ..settings import SettingField, describe_settings
from .nodes import NODE_STEPS

SOCKET_TYPES = {
    "model": "LUMINA2_MODEL",
    "dataset": "LUMINA2_DATASET",
    "latents": "LUMINA2_LATENTS",
    "embeds": "LUMINA2_EMBEDS",
    "adapter": "LUMINA2_ADAPTER",
    "adapter_settings": "LUMINA2_ADAPTER_SETTINGS",
    "optimizer_settings": "LUMINA2_OPTIMIZER_SETTINGS",
    "noise_schedule": "LUMINA2_NOISE_SCHEDULE",
    "validation": "LUMINA2_VALIDATION_PROMPTS",
    "checkpoints": "LUMINA2_CHECKPOINTS",
    "tracking": "LUMINA2_TRACKING",
    "hub": "LUMINA2_HUB",
    "rollout": "LUMINA2_ROLLOUT",
    "report": "STRING",
    "path": "STRING",
    "grid_path": "STRING",
    "scores": "STRING",
    "lora_model": "LORA_MODEL",
    "loss_map": "LOSS_MAP",
    "contact_sheet": "IMAGE",
    "validation_images": "IMAGE",
    "grid": "IMAGE",
    "images": "IMAGE",
}
"""The type of every input and output, by its name."""
PREVIEWED = ("grid", "validation_images")
"""Outputs that a preview shows, the best first."""
COLUMNS = (
    ("Model and data", ("model", "dataset")),
    ("Caches", ("validation", "latents", "embeds")),
    ("Settings", ("lora", "lycoris", "optimizer", "noise", "rollout")),
    ("Records", ("checkpoints", "tracking", "hub")),
    ("Train", ("train", "train_full")),
    ("Look and keep", ("compare", "preview", "save", "save_full")),
)
"""The groups on the canvas, from left to right, and the parts in each from top to bottom."""
WIDTH, GAP, MARGIN, TITLE = 420, 80, 20, 90
"""Of nodes, between nodes, within groups, and above the first node of a group; in pixels."""
WIDGET, TEXT_BOX, SOCKET, PANEL = 40, 110, 22, 380
"""Heights in pixels; the last is of the live panel of a Train node, and of pictures."""
EXTRA_HEIGHTS = {"train": PANEL, "train_full": PANEL, "dataset": 130}
"""Of what a node shows below its widgets."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A node."""

    node: str
    """Its type."""
    title: str
    """Its name on the canvas, without the pack's."""
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that take links."""
        return NODE_STEPS[self.node].sockets


TRAINED = ("loss_map", "validation_images", "scores")
PARTS: Mapping[str, Part] = {
    "model": Part(node="Lumina2Load", title="Load Lumina2", outputs=("model",)),
    "dataset": Part(
        node="Lumina2DatasetFolder", title="Dataset Folder", outputs=("dataset", "report", "contact_sheet")
    ),
    "latents": Part(node="Lumina2CacheLatents", title="Cache Latents", outputs=("latents",)),
    "embeds": Part(node="Lumina2CacheTextEmbeds", title="Cache Text Embeds", outputs=("embeds",)),
    "validation": Part(node="Lumina2ValidationPrompts", title="Validation Prompts", outputs=("validation",)),
    "lora": Part(node="Lumina2LoRASettings", title="LoRA Settings", outputs=("adapter_settings",)),
    "lycoris": Part(node="Lumina2LyCORISSettings", title="LyCORIS Settings", outputs=("adapter_settings",)),
    "optimizer": Part(node="Lumina2Optimizer", title="Optimizer", outputs=("optimizer_settings",)),
    "noise": Part(node="Lumina2NoiseSchedule", title="Noise Schedule", outputs=("noise_schedule",)),
    "rollout": Part(node="Lumina2Rollout", title="Rollout", outputs=("rollout",)),
    "checkpoints": Part(node="Lumina2Checkpoints", title="Checkpoints and EMA", outputs=("checkpoints",)),
    "tracking": Part(node="Lumina2Tracking", title="Tracking", outputs=("tracking",)),
    "hub": Part(node="Lumina2HubUpload", title="Hub Upload", outputs=("hub",)),
    "train": Part(node="Lumina2TrainLoRA", title="Train LoRA", outputs=("adapter", "lora_model", *TRAINED)),
    "train_full": Part(node="Lumina2TrainFull", title="Train Full Model", outputs=("model", *TRAINED)),
    "compare": Part(node="Lumina2Compare", title="Compare Checkpoints", outputs=("grid", "images", "grid_path")),
    "save": Part(node="Lumina2SaveAdapter", title="Save Adapter", outputs=("path",)),
    "save_full": Part(node="Lumina2SaveModel", title="Save Model", outputs=("path",)),
}
"""By name. What "train" and "save" mean depends on what is trained, see FULL_PARTS."""

FULL_PARTS = {"train": "train_full", "save": "save_full"}
"""What stands in the place of a part where the whole model is trained."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A training graph: one node for each part, and one for each dataset."""

    settings: Mapping[str, Any]
    """A settings dataclass by part; "model", "train" and "save" must be there."""
    datasets: Sequence[DatasetFolderSettings]
    """Each is added to the one before."""
    is_full: bool = False
    """What "train" and "save" mean, see FULL_PARTS."""


@dataclass(kw_only=True)
class Placed:
    """A node that is put on the canvas."""

    id: int
    part: str
    node: str
    widgets: list[Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    height: int
    pos: tuple[int, int] = (0, 0)


def graph_content(graph: Graph, read_me: str) -> dict[str, Any]:
    """The content of the file, in the format of ComfyUI's Save.

    Args:
        graph: Every part's settings.
        read_me: Markdown for the note at the left.
    """
    nodes = list(_nodes(graph))
    groups = _arrange(nodes)
    links = _links(nodes)
    note = {
        **_frame(1, "MarkdownNote", (-WIDTH - GAP - MARGIN, 0), WIDTH, 900),
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [read_me],
        "title": "Read me",
        "color": "#432",
        "bgcolor": "#653",
    }
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, read_me)),
        "revision": 0,
        "last_node_id": nodes[-1].id,
        "last_link_id": len(links),
        "nodes": [note, *(_node_content(node, links) for node in nodes)],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _nodes(graph: Graph) -> Iterator[Placed]:
    """Every node, sources before those that read them."""
    settings = dict(graph.settings)
    order = ("train", "save", "compare")
    last = [(part, settings.pop(part)) for part in order if part in settings]
    parts: list[tuple[str, Any]] = [("model", settings.pop("model"))]
    parts += [("dataset", dataset) for dataset in graph.datasets]
    parts += sorted(settings.items(), key=lambda item: item[0] in ("latents", "embeds"))
    parts += [(FULL_PARTS.get(part, part) if graph.is_full else part, values) for part, values in last]
    for number, (part, values) in enumerate(parts, start=2):
        fields = describe_settings(type(values))
        known = PARTS[part]
        yield Placed(
            id=number,
            part=part,
            node=known.node,
            widgets=[getattr(values, field.name) for field in fields],
            inputs=known.inputs,
            outputs=known.outputs,
            height=_height(part, fields),
        )
    if "validation" in settings or "compare" in dict(last):
        yield Placed(
            id=len(parts) + 2,
            part="preview",
            node="PreviewImage",
            widgets=[],
            inputs=("images",),
            outputs=(),
            height=PANEL + 40,
        )


def _height(part: str, fields: Sequence[SettingField]) -> int:
    """Of a node, in pixels, with its advanced widgets, which some frontends show."""
    sockets = max(len(PARTS[part].inputs), len(PARTS[part].outputs))
    widgets = sum(TEXT_BOX if field.multiline else WIDGET for field in fields)
    return 60 + SOCKET * sockets + widgets + EXTRA_HEIGHTS.get(part, 0)


def _arrange(nodes: Sequence[Placed]) -> list[dict[str, Any]]:
    """Put every node into its column; returns the groups."""
    groups: list[dict[str, Any]] = []
    for title, parts in COLUMNS:
        column = sorted((node for node in nodes if node.part in parts), key=lambda node: parts.index(node.part))
        if not column:
            continue
        left, top = len(groups) * (WIDTH + GAP), 0
        for node in column:
            node.pos = (left, top)
            top += node.height + GAP
        bounding = [left - MARGIN, -TITLE, WIDTH + 2 * MARGIN, top - GAP + TITLE + MARGIN]
        groups.append(
            {
                "id": len(groups) + 1,
                "title": f"{len(groups) + 1}. {title}",
                "bounding": bounding,
                "color": "#3f789e",
                "font_size": 24,
                "flags": {},
            }
        )
    return groups


def _links(nodes: Sequence[Placed]) -> list[list[Any]]:
    """Every input to the last node before it that gives a value of this name: its dataset is the one before."""
    links: list[list[Any]] = []
    for node in nodes:
        for slot, socket in enumerate(node.inputs):
            wanted = PREVIEWED if node.part == "preview" else (socket,)
            before = [other for other in nodes if other.id < node.id]
            found = [(other, name) for name in wanted for other in reversed(before) if name in other.outputs]
            if found:
                source, name = found[0]
                number = len(links) + 1
                links.append([number, source.id, source.outputs.index(name), node.id, slot, SOCKET_TYPES[name]])
    return links


def _frame(node_id: int, node_type: str, pos: tuple[int, int], width: int, height: int) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": node_type,
        "pos": list(pos),
        "size": [width, height],
        "flags": {},
        "order": node_id - 1,
        "mode": 0,
    }


def _node_content(node: Placed, links: Sequence[Sequence[Any]]) -> dict[str, Any]:
    incoming = {link[4]: link[0] for link in links if link[3] == node.id}
    outgoing = {slot: [link[0] for link in links if link[1:3] == [node.id, slot]] for slot in range(len(node.outputs))}
    return {
        **_frame(node.id, node.node, node.pos, WIDTH, node.height),
        "inputs": [
            {"name": name, "type": SOCKET_TYPES[name], "link": incoming.get(slot)}
            for slot, name in enumerate(node.inputs)
        ],
        "outputs": [
            {"name": name, "type": SOCKET_TYPES[name], "links": outgoing[slot]}
            for slot, name in enumerate(node.outputs)
        ],
        "properties": {"Node name for S&R": node.node},
        "widgets_values": node.widgets,
    }
