"""Keys of the configuration that are about data and caches, and of data backends that hold no pictures."""

from __future__ import annotations

from .rules import Outcome, Rules, by, ignored, one_of, to, together, whole

SHARED_WITH_CONFIG = (
    "resolution",
    "resolution_type",
    "minimum_image_size",
    "maximum_image_size",
    "target_downsample_size",
    "caption_strategy",
    "instance_prompt",
    "prepend_instance_prompt",
    "only_instance_prompt",
    "masked_loss_probability",
)
"""Keys of the configuration that hold for every backend which does not have them."""
TEXT_EMBEDS_KEYS: Rules = {
    "id": ignored("there is one text cache"),
    "type": together("embeds", "the cache is a folder on this machine"),
    "dataset_type": by(lambda options, key: Outcome(values={"embeds": ""}), "embeds", note="Cache Text Embeds"),
    "default": together("embeds", "all datasets share it"),
    "disabled": together("embeds", "captions are always cached"),
    "cache_dir": ignored("captions are cached in output/lumina2_trainer/cache, named by content and settings"),
    "write_batch_size": ignored("entries are written by threads while the encoder works"),
    "caption_filter_list": ignored("captions are trained as they are written: change the files"),
}
DATASET_CONFIG_KEYS: Rules = {
    "data_backend_config": together("dataset", "its keys have a table of their own"),
    "data_backend_sampling": to(
        "dataset.sampling",
        one_of({"auto-weighting": "auto", "uniform": "uniform"}),
        note="auto-weighting is auto",
        default="auto-weighting",
    ),
    **dict.fromkeys(SHARED_WITH_CONFIG, together("dataset", "for every data backend that does not say its own")),
    "masked_loss_probability": together("dataset", "for every data backend with masks of type segmentation"),
    "vae_batch_size": to("latents.batch_size", whole),
    "text_encoder_batch_size": to("embeds.batch_size", whole),
    "write_batch_size": ignored("entries of the caches are written by threads while the encoder works"),
    "read_batch_size": ignored("batches are read ahead by a thread"),
    "disable_bucket_pruning": ignored("always so: batches mix shapes, no bucket is too short"),
    "allow_dataset_oversubscription": ignored("not needed: pictures of any number fill batches"),
    "override_dataset_config": ignored("settings always hold, caches follow them"),
    "aspect_bucket_*": ignored("shapes lie on a grid of 64 pixels, as Lumina2 requires there too"),
    "image_processing_batch_size": ignored("pictures are read by threads"),
    "vae_cache_*": ignored("Cache Latents encodes what is not cached yet, and nothing else"),
    "vae_dtype": ignored("latents have the precision of Load Lumina2"),
    "vae_enable_*": ignored("batch_size 0 of Cache Latents takes what fits in memory"),
    "keep_vae_loaded": ignored("the VAE is loaded only where it is used"),
    "tokenizer_max_length": ignored("256 tokens, as Lumina2 was trained; longer captions are named in the log"),
    "delete_*": ignored("no file of a dataset is ever deleted"),
    "ignore_missing_files": ignored("the report of Dataset Folder names what cannot be used"),
    "max_workers": ignored("threads are chosen by the machine"),
    "torch_num_threads": ignored("threads are chosen by the machine"),
    "dataloader_prefetch*": ignored("batches are read ahead by a thread"),
    "enable_nsfw_check": ignored("pictures are not judged"),
    "nsfw_*": ignored("pictures are not judged"),
    "caption_dropout_*": ignored("caption_dropout_probability says it all"),
}
