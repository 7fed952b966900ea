"""Keys about data: of backends with pictures, one Dataset Folder each, of other backends, and of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...data.sizing import GRID
from .mask_keys import MASK_KEYS
from .rules import Options, Outcome, Rules, by, flag, ignored, kind_of, lines, number, one_of, text, to, together, whole

TABLES = {"parquet": "parquet", "csv": "csv", "jsonl": "jsonl"}
SEPARATORS = {"comma": ",", "space": " ", "semicolon": ";", "period": ".", "pipe": "|"}
MAX_COPIES = 100
"""Of an aspect ratio that is to be chosen more often."""


def _folder(options: Options, key: str) -> Outcome:
    value = text(options, key)
    if not value:
        raise options.error(key, "the folder with the pictures")
    return Outcome(values={"dataset.folder": value})


def _kind(options: Options, key: str) -> Outcome:
    return Outcome(values={"dataset.is_held_out": True} if kind_of(options) == "eval" else {"dataset": ""})


def _crop(options: Options, key: str) -> Outcome:
    aspects = {"square": "square", "preserve": "buckets", "closest": "closest", "random": "random"}
    if not flag(options, "crop"):
        note = "crop is off: cut to the nearest shape of the grid" if key == "crop" else "crop is off"
        return Outcome(values={"dataset.aspect": "buckets"} if key == "crop" else {}, note=note)
    if key == "crop":
        return Outcome(values={"dataset": ""}, note="read together with crop_aspect")
    return Outcome(values={"dataset.aspect": one_of(aspects)(options, key)})


def _crop_style(options: Options, key: str) -> Outcome:
    styles = {"center": "center", "centre": "center", "corner": "corner", "random": "random", "face": ""}
    style = one_of(styles)(options, key)
    if not flag(options, "crop"):
        return Outcome(note="crop is off: the centre is kept")
    if not style:
        return Outcome(
            values={"dataset.crop_style": "center"}, note="faces are not looked for, as nobody would see its misses"
        )
    return Outcome(values={"dataset.crop_style": style})


def _aspect_buckets(options: Options, key: str) -> Outcome:
    if not flag(options, "crop") or text(options, "crop_aspect") not in ("closest", "random"):
        return Outcome(note="crop_aspect does not use it")
    entries = options.get(key)
    if not isinstance(entries, list) or not entries:
        raise options.error(key, "a list of ratios")
    try:
        ratios = [
            (float(entry["aspect_ratio"]), float(entry.get("weight", 1)))
            if isinstance(entry, Mapping)
            else (float(entry), 1.0)
            for entry in entries
        ]
        least = min(weight for _, weight in ratios)
        copies = [f"{ratio:g}" for ratio, weight in ratios for _ in range(min(MAX_COPIES, round(weight / least)))]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise options.error(key, "a list of ratios, or of objects with aspect_ratio and a weight above 0") from None
    note = "a ratio that weighs more is listed more often" if len(copies) > len(ratios) else ""
    return Outcome(values={"dataset.aspect_ratios": ", ".join(copies)}, note=note)


def _resolution(options: Options, key: str) -> Outcome:
    value = number(options, key)
    if text(options, "resolution_type").strip().lower() == "area":
        return Outcome(values={"dataset.megapixels": value}, note="a megapixel is 1024 x 1024")
    side = max(GRID, round(value / GRID) * GRID)
    note = f"the nearest multiple of {GRID}" if side != value else ""
    return Outcome(values={"dataset.resolution": side}, note=note)


def _size(target: str, partner: str = "") -> Any:
    def convert(options: Options, key: str) -> Outcome:
        if options.get(key) is None:
            return Outcome(note="null is off")
        value = number(options, key)
        if partner and not (value and options.get(partner)):
            return Outcome(note=f"acts only together with {partner}, there and here")
        return Outcome(values={target: value})

    return convert


def _captions(options: Options, key: str) -> Outcome:
    strategy = text(options, key).strip().lower()
    if flag(options, "only_instance_prompt"):
        return Outcome(values={"dataset.caption_source": "one_text"}, note="only_instance_prompt is on")
    if strategy == "parquet" and _table(options).get("path", "").lower().endswith(".jsonl"):
        strategy = "jsonl"
    if strategy in TABLES:
        return Outcome(values={"dataset.caption_source": TABLES[strategy]})
    names = {"textfile": "textfile", "filename": "filename", "instanceprompt": "one_text"}
    if strategy in ("huggingface", "webshart"):
        raise options.error(key, "of a kind that is read from files: save the captions as textfile or parquet")
    return Outcome(values={"dataset.caption_source": one_of(names)(options, key)})


def _instance_prompt(options: Options, key: str) -> Outcome:
    value = lines(text(options, key))
    if not value:
        return Outcome(note="empty")
    if flag(options, "only_instance_prompt") or text(options, "caption_strategy").strip().lower() == "instanceprompt":
        return Outcome(values={"dataset.caption": value})
    if flag(options, "prepend_instance_prompt"):
        note = "a comma follows it here, as people write trigger words"
        return Outcome(values={"dataset.trigger_words": " ".join(value.split("\n"))}, note=note)
    return Outcome(note="used with caption_strategy instanceprompt or prepend_instance_prompt only")


def _table(options: Options) -> Mapping[str, Any]:
    table = options.get("parquet") or options.get("csv") or {}
    if not isinstance(table, Mapping):
        raise options.error("parquet", "an object with path, filename_column and caption_column")
    return {key: str(value) if value is not None else "" for key, value in table.items()}


def _columns(options: Options, key: str) -> Outcome:
    if text(options, "caption_strategy").strip().lower() not in TABLES:
        return Outcome(note="captions do not come from it")
    names = {
        "path": "dataset.metadata_file",
        "filename_column": "dataset.file_column",
        "caption_column": "dataset.caption_column",
        "fallback_caption_column": "dataset.fallback_caption_column",
    }
    table = _table(options)
    values = {target: table[name] for name, target in names.items() if table.get(name)}
    left_out = [name for name in table if name not in names]
    return Outcome(values=values, note=f"not needed: {', '.join(left_out)}" if left_out else "")


def _shuffle(options: Options, key: str) -> Outcome:
    shuffle = options.get(key)
    if not isinstance(shuffle, Mapping):
        raise options.error(key, "an object with enable and count")
    inner = Options(where=f"{options.where}: {key}", given=shuffle)
    if "enable" in shuffle and not flag(inner, "enable"):
        return Outcome(note="off")
    values: dict[str, Any] = {"dataset.num_tag_shuffles": whole(inner, "count") if "count" in shuffle else 1}
    if "position_start" in shuffle:
        values["dataset.num_tags_kept"] = whole(inner, "position_start")
    if "split_on" in shuffle:
        separator = text(inner, "split_on")
        values["dataset.tag_separator"] = SEPARATORS.get(separator.strip().lower(), separator)
    return Outcome(values=values, note="the caption as written is always among them; the order has its own seed")


DATASET_KEYS: Rules = {
    "id": ignored("folders are told apart by their path"),
    "type": together("dataset", "local is a folder; a backend of another type is left out as a whole"),
    "dataset_type": by(
        _kind,
        "dataset.is_held_out",
        note="image is Dataset Folder, eval has is_held_out on, text_embeds is Cache Text Embeds; others are left out",
    ),
    "disabled": together("dataset", "a backend that is disabled is left out as a whole"),
    "instance_data_dir": by(_folder, "dataset.folder", default=""),
    "crop": by(_crop, "dataset.aspect", note="false is buckets", default=False),
    "crop_aspect": by(_crop, "dataset.aspect", note="preserve is buckets", default="square"),
    "crop_aspect_buckets": by(_aspect_buckets, "dataset.aspect_ratios", note="for closest and random"),
    "crop_style": by(_crop_style, "dataset.crop_style", note="face becomes center", default="random"),
    "resolution": by(
        _resolution, "dataset.resolution", "dataset.megapixels", note="a multiple of 64, or megapixels", default=1024
    ),
    "resolution_type": to(
        "dataset.resolution_type",
        one_of({"pixel_area": "pixel_area", "pixel": "pixel", "area": "area"}),
        default="pixel_area",
    ),
    "minimum_image_size": by(_size("dataset.minimum_image_size"), "dataset.minimum_image_size"),
    "maximum_image_size": by(
        _size("dataset.maximum_image_size", "target_downsample_size"),
        "dataset.maximum_image_size",
        note="together with target_downsample_size",
    ),
    "target_downsample_size": by(
        _size("dataset.target_downsample_size", "maximum_image_size"),
        "dataset.target_downsample_size",
        note="together with maximum_image_size; only larger pictures are scaled to it",
    ),
    "caption_strategy": by(_captions, "dataset.caption_source", note="instanceprompt is one_text", default="filename"),
    "instance_prompt": by(
        _instance_prompt, "dataset.caption", "dataset.trigger_words", note="trigger words if prepended"
    ),
    "prepend_instance_prompt": together("dataset", "read together with instance_prompt"),
    "only_instance_prompt": together("dataset", "read together with caption_strategy"),
    "disable_multiline_split": by(
        lambda options, key: Outcome(values={"dataset.caption_lines": "join" if flag(options, key) else "one_each"}),
        "dataset.caption_lines",
        note="true is join, false is one_each",
        default=False,
    ),
    "caption_shuffle": by(
        _shuffle,
        "dataset.num_tag_shuffles",
        "dataset.num_tags_kept",
        "dataset.tag_separator",
        note="count, position_start, split_on",
    ),
    "parquet": by(
        _columns,
        *(f"dataset.{name}" for name in ("metadata_file", "file_column", "caption_column", "fallback_caption_column")),
        note="path, filename_column, caption_column, fallback_caption_column",
    ),
    "csv": by(_columns, "dataset.metadata_file", note="as parquet"),
    "repeats": by(
        lambda options, key: Outcome(
            values={"dataset.repeats": whole(options, key) + 1}, note="there it counts further passes, here all"
        ),
        "dataset.repeats",
        note="plus one: there it counts further passes, here all",
        default=0,
    ),
    "probability": to("dataset.probability", number),
    "is_regularisation_data": to("dataset.is_regularisation", flag),
    "metadata_backend": ignored("pictures are read once and remembered by content"),
    "cache_dir_vae": ignored("latents are cached in output/lumina2_trainer/cache, named by content and settings"),
    "text_embeds": ignored("all captions share one cache, named by content and settings"),
    "image_embeds": ignored("latents are cached in output/lumina2_trainer/cache"),
    "vae_cache_disable": ignored("the VAE would stay in memory and encode each picture at every step"),
    "vae_cache_ondemand": ignored("all pictures are encoded by Cache Latents, once"),
    "vae_cache_clear_each_epoch": ignored("num_crops of Dataset Folder gives changing crops from the cache"),
    "text_cache_*": ignored("all captions are encoded by Cache Text Embeds, once"),
    "skip_file_discovery": ignored("looking for new files takes seconds"),
    "preserve_data_backend_cache": ignored("entries of the cache are never deleted"),
    "compress_disk_cache": ignored("entries are safetensors in bf16 or float32"),
    **MASK_KEYS,
    "caption_filter_list": ignored("captions are trained as they are written: change the files"),
    "minimum_aspect_ratio": ignored("pictures of every shape are trained, cropped to at most 4:1"),
    "maximum_aspect_ratio": ignored("pictures of every shape are trained, cropped to at most 4:1"),
    "max_upscale_threshold": ignored("the report of Dataset Folder names enlarged pictures; see minimum_image_size"),
    "max_num_samples": ignored("the whole folder is trained: move pictures out of it"),
    **dict.fromkeys(
        ("start_epoch", "end_epoch", "start_step", "end_step"),
        ignored("a folder takes part in the whole run: train in two runs"),
    ),
    "train_batch_size": ignored("folders share batches: batch_size of the Train node"),
    "timestep_sampling_offset": ignored("one offset holds for all folders: logit_offset of Noise Schedule"),
    "slider_strength": ignored("slider LoRAs are not offered"),
    "write_batch_size": ignored("entries are written by threads while the encoder works"),
}

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
