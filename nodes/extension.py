"""The pack as ComfyUI asks for it: its nodes and its routes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class Lumina2TrainerExtension(ComfyExtension):
    """Called by ComfyUI once, while it starts."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from . import (
            caches,
            caption_table,
            compare,
            dataset,
            dataset_from_images,
            inference,
            load,
            publish_nodes,
            routes,
            save_adapter,
            save_model,
            settings_nodes,
            train_full,
            train_lora,
            validate,
        )

        routes.add_routes()
        return [
            load.LoadLumina2,
            dataset.DatasetFolder,
            dataset_from_images.DatasetFromImages,
            caption_table.CaptionTable,
            caches.CacheLatents,
            caches.CacheTextEmbeds,
            train_lora.TrainLoRA,
            train_full.TrainFullModel,
            validate.Validate,
            compare.Compare,
            save_adapter.SaveAdapter,
            save_model.SaveModel,
            inference.Lumina2ForInference,
            settings_nodes.LoRASettings,
            settings_nodes.LyCORISSettings,
            settings_nodes.OptimizerSettings,
            settings_nodes.NoiseSchedule,
            settings_nodes.ValidationPrompts,
            settings_nodes.Checkpoints,
            settings_nodes.Rollout,
            publish_nodes.Tracking,
            publish_nodes.HubUpload,
        ]
