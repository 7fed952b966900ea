"""The pack as ComfyUI asks for it: its nodes and its routes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class Lumina2TrainerExtension(ComfyExtension):
    """Called by ComfyUI once, while it starts."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import caches, caption_table, dataset, load, routes, save_adapter, settings_nodes, train_lora, validate

        routes.add_routes()
        return [
            load.LoadLumina2,
            dataset.DatasetFolder,
            dataset.DatasetFromImages,
            caption_table.CaptionTable,
            caches.CacheLatents,
            caches.CacheTextEmbeds,
            train_lora.TrainLoRA,
            train_lora.TrainFullModel,
            validate.Validate,
            validate.Compare,
            save_adapter.SaveAdapter,
            save_adapter.SaveModel,
            load.Lumina2ForInference,
            settings_nodes.LoRASettings,
            settings_nodes.LyCORISSettings,
            settings_nodes.OptimizerSettings,
            settings_nodes.NoiseSchedule,
            settings_nodes.ValidationPrompts,
            settings_nodes.Checkpoints,
            settings_nodes.Rollout,
            settings_nodes.Tracking,
            settings_nodes.HubUpload,
        ]
