"""The latent and text caches: what travels on the LUMINA2_LATENTS and LUMINA2_EMBEDS sockets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """A finished latent cache, by its index file."""

    index_path: str
    """JSON index: see `LatentIndex`."""
    fingerprint: str
    """Changes when any cached latent or its order changes."""


@dataclass(frozen=True, kw_only=True)
class EmbedCache:
    """A finished text cache, by its index file."""

    index_path: str
    fingerprint: str
