"""Cache Latents and Cache Text Embeds: what training reads instead of pictures and captions."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.data.folder import Dataset
from ..trainer_core.data.index import EMBEDS_FOLDER, LATENTS_FOLDER
from ..trainer_core.lumina2.models.model_files import Lumina2Model
from ..trainer_core.stages import caches
from ..trainer_core.validation.settings import ValidationSettings
from . import file_watch, host, sockets
from .forecasts import FORECASTER
from .widgets import build_widgets, check_widgets


class CacheLatents(io.ComfyNode):
    """Pictures through the VAE, once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2CacheLatents",
            display_name="Cache Latents (Lumina2)",
            category="Lumina2 Trainer",
            description="Encodes every picture with the VAE, once. Unchanged pictures are reused.",
            inputs=[
                sockets.Lumina2Model.Input("model", tooltip="From Load Lumina2; its VAE is used."),
                sockets.Dataset.Input("dataset", tooltip="From Dataset Folder."),
                *build_widgets(caches.CacheLatentsSettings),
            ],
            outputs=[sockets.Latents.Output(display_name="latents", tooltip="For latents of a Train node.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        return file_watch.count_lost_caches(LATENTS_FOLDER)

    @classmethod
    def execute(cls, model: Lumina2Model, dataset: Dataset, **widgets: Any) -> io.NodeOutput:
        with (
            host.running_step(cls.hidden) as surroundings,
            FORECASTER.forecasting(cls.hidden, dataset, surroundings) as context,
        ):
            settings = caches.CacheLatentsSettings(**widgets)
            cache = caches.cache_latents(settings, model=model, dataset=dataset, context=context)
            file_watch.watch_cache(LATENTS_FOLDER, cache.index_path)
            return io.NodeOutput(cache)


class CacheTextEmbeds(io.ComfyNode):
    """Captions through Gemma2, once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Lumina2CacheTextEmbeds",
            display_name="Cache Text Embeds (Lumina2)",
            category="Lumina2 Trainer",
            description="Encodes every caption and validation prompt with Gemma2, once. Unchanged captions are reused.",
            inputs=[
                sockets.Lumina2Model.Input("model", tooltip="From Load Lumina2; its text encoder is used."),
                sockets.Dataset.Input("dataset", tooltip="From Dataset Folder."),
                *build_widgets(caches.CacheTextEmbedsSettings),
                sockets.ValidationPrompts.Input(
                    "validation",
                    optional=True,
                    tooltip="From Validation Prompts: these are encoded too, for use in training.",
                ),
            ],
            outputs=[sockets.Embeds.Output(display_name="embeds", tooltip="For embeds of a Train node.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, **widgets: Any) -> bool:
        return check_widgets(caches.CacheTextEmbedsSettings, widgets)

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        return file_watch.count_lost_caches(EMBEDS_FOLDER)

    @classmethod
    def execute(
        cls, model: Lumina2Model, dataset: Dataset, validation: ValidationSettings | None = None, **widgets: Any
    ) -> io.NodeOutput:
        with (
            host.running_step(cls.hidden) as surroundings,
            FORECASTER.forecasting(cls.hidden, dataset, surroundings) as context,
        ):
            settings = caches.CacheTextEmbedsSettings(**widgets)
            cache = caches.cache_text_embeds(
                settings, model=model, dataset=dataset, validation=validation, context=context
            )
            file_watch.watch_cache(EMBEDS_FOLDER, cache.index_path)
            return io.NodeOutput(cache)
