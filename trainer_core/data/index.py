"""Which entries make up the latents and the captions of one dataset: JSON files beside the entries.

An index's name is the hash of its content, so that indexes of other datasets and of earlier states stay what they were,
and old sockets stay valid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_bytes_atomically
from .folder import SAMPLINGS, DatasetFolderSettings

LATENTS_FOLDER = "latents"
EMBEDS_FOLDER = "text_embeds"
INDEX_FOLDER = "indexes"
FORMAT_VERSION = 1


def folder_number(sample_id: str) -> int:
    """The number of a sample's folder, from 1."""
    return int(sample_id.split("/", 1)[0])


def weigh_folders(folders: Sequence[DatasetFolderSettings], counts: Mapping[int, int]) -> dict[int, float]:
    """How often each folder is drawn; empty if all count by their samples alone.

    Args:
        folders: Settings of the dataset's folders.
        counts: Samples of each folder in one pass, by number.
    """
    kinds = {(folder.sampling, folder.probability) for folder in folders}
    if len(folders) < 2 or (len(kinds) == 1 and folders[0].sampling == "auto"):
        return {}
    weigh = SAMPLINGS[folders[0].sampling]
    return {number: weigh(folders[number - 1].probability, count) for number, count in sorted(counts.items())}


@dataclass(frozen=True, kw_only=True)
class LatentSample:
    """The latents of one picture."""

    id: str
    """`<folder number>/<path inside the folder>`."""
    file_name: str
    """Without folders."""
    latents: str
    """Name of the entry in the latents folder."""
    width: int
    """Of the bucket, in pixels."""
    height: int
    repeats: int
    content_hash: str
    """SHA-256 of the picture file."""
    more_latents: tuple[str, ...] = ()
    """Names of the entries of further crops."""
    masks: tuple[str, ...] = ()
    """Names of the entries of its mask, one for each crop; none if it has no mask."""


@dataclass(frozen=True, kw_only=True)
class EmbedSample:
    """The captions of one picture."""

    id: str
    content_hash: str
    """SHA-256 of the picture file."""
    captions: tuple[str, ...]
    """With trigger words, without system prompt."""
    embeds: tuple[str, ...]
    """Names of the entries in the text folder, one for each caption."""


@dataclass(frozen=True, kw_only=True)
class LatentIndex:
    """What one latent cache holds."""

    cache_dir: Path
    """Parent of the folders with entries; not written to the file, so that a cache can be moved."""
    samples: tuple[LatentSample, ...]
    folders: tuple[DatasetFolderSettings, ...]
    """Settings of the dataset's folders; sample ids start with their number, from 1."""

    @property
    def fingerprint(self) -> str:
        """See `LatentCache.fingerprint`."""
        samples = [[s.id, s.latents, s.repeats, *s.more_latents] for s in self.samples]
        weights, priors = self.folder_weights, [f.is_regularisation for f in self.folders]
        content: list[Any] = [samples, weights, priors] if weights or any(priors) else samples
        masks, held_out = [sample.masks for sample in self.samples], [f.is_held_out for f in self.folders]
        if any(masks):
            content = [content, masks, [f.mask_outside_weight for f in self.folders]]
        return _hash_json({"content": content, "held_out": held_out} if any(held_out) else content)

    @property
    def folder_weights(self) -> dict[int, float]:
        """How often each folder is drawn, by number; empty if all count by their samples alone."""
        counts = Counter[int]()
        for sample in self.samples:
            counts[folder_number(sample.id)] += sample.repeats
        return weigh_folders(self.folders, counts)

    def path_of(self, sample: LatentSample) -> Path:
        """Entry of the sample's first crop."""
        return self.paths_of(sample)[0]

    def paths_of(self, sample: LatentSample) -> tuple[Path, ...]:
        """Entries of the sample's crops."""
        return tuple(self.cache_dir / LATENTS_FOLDER / name for name in (sample.latents, *sample.more_latents))

    def mask_paths_of(self, sample: LatentSample) -> tuple[Path, ...]:
        """Entries of the sample's mask, one for each crop or none."""
        return tuple(self.cache_dir / LATENTS_FOLDER / name for name in sample.masks)

    def to_json(self) -> dict[str, Any]:
        """Everything but `cache_dir`."""
        return {
            "kind": LATENTS_FOLDER,
            "version": FORMAT_VERSION,
            "folders": [dataclasses.asdict(folder) for folder in self.folders],
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], cache_dir: Path) -> LatentIndex:
        """The index that `to_json` described."""
        return cls(
            cache_dir=cache_dir,
            samples=tuple(
                LatentSample(**{**sample, **{name: tuple(sample.get(name, ())) for name in ("more_latents", "masks")}})
                for sample in content["samples"]
            ),
            folders=tuple(DatasetFolderSettings(**folder) for folder in content["folders"]),
        )


@dataclass(frozen=True, kw_only=True)
class EmbedIndex:
    """What one text cache holds."""

    cache_dir: Path
    """Parent of the folders with entries; not written to the file, so that a cache can be moved."""
    samples: tuple[EmbedSample, ...]
    prompts: Mapping[str, Path]
    """Entries of validation prompts, by the prompt as typed; encoded with the system prompt."""
    negative_prompts: Mapping[str, Path]
    """Entries of negative prompts, by the prompt as typed; encoded bare. Always holds the empty one."""
    system_prompt: str
    """Put before captions and validation prompts; empty if there is none."""
    trigger_words: str
    """Of all folders, joined by commas."""

    @property
    def unconditional(self) -> Path:
        """Entry of the bare empty prompt."""
        return self.negative_prompts[""]

    @property
    def fingerprint(self) -> str:
        """See `EmbedCache.fingerprint`."""
        return _hash_json([[[s.id, s.embeds] for s in self.samples], self.unconditional.name])

    def path_of(self, sample: EmbedSample) -> Path:
        """Entry of the sample's first caption."""
        return self.paths_of(sample)[0]

    def paths_of(self, sample: EmbedSample) -> tuple[Path, ...]:
        """Entries of the sample's captions."""
        return tuple(self.cache_dir / EMBEDS_FOLDER / name for name in sample.embeds)

    def negative_path(self, prompt: str) -> Path:
        """Entry of a negative prompt that is known to be encoded."""
        return self.negative_prompts[prompt]

    def to_json(self) -> dict[str, Any]:
        """Everything but `cache_dir`."""
        return {
            "kind": EMBEDS_FOLDER,
            "version": FORMAT_VERSION,
            "system_prompt": self.system_prompt,
            "trigger_words": self.trigger_words,
            "prompts": {prompt: path.name for prompt, path in self.prompts.items()},
            "negative_prompts": {prompt: path.name for prompt, path in self.negative_prompts.items()},
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], cache_dir: Path) -> EmbedIndex:
        """The index that `to_json` described."""
        folder = cache_dir / EMBEDS_FOLDER
        return cls(
            cache_dir=cache_dir,
            samples=tuple(
                EmbedSample(**{**sample, "captions": tuple(sample["captions"]), "embeds": tuple(sample["embeds"])})
                for sample in content["samples"]
            ),
            prompts={prompt: folder / name for prompt, name in content["prompts"].items()},
            negative_prompts={prompt: folder / name for prompt, name in content["negative_prompts"].items()},
            system_prompt=content["system_prompt"],
            trigger_words=content["trigger_words"],
        )


def _hash_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_index(index: LatentIndex | EmbedIndex) -> Path:
    """Write an index under the name of its content."""
    content = index.to_json()
    path = index.cache_dir / INDEX_FOLDER / f"{content['kind']}-{_hash_json(content)[:32]}.json"
    write_bytes_atomically(path, json.dumps(content, indent=1).encode())
    return path
