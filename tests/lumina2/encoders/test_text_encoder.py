"""Gemma2's embeddings, its tokenizer, and what ComfyUI would read otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.encoders.prompts import SYSTEM_PROMPTS, build_prompt
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import (
    TEXT_ATTENTIONS,
    TextEncoder,
    count_tokens,
    describe_differences,
    load_text_encoder,
)
from lumina2_trainer.trainer_core.lumina2.encoders.text_files import find_text_files
from torch import Tensor

from ..tiny_files import (
    GEMMA_WIDTH,
    SENTENCES,
    split_state,
    tiny_gemma,
    train_spiece,
    write_all_in_one,
    write_diffusers_folder,
    write_split,
)
from ..tiny_models import CPU, relative_error

PROMPTS = ["", "a red chair", "\n two  lines\n\n", "一只猫 😀", "word " * 400, *SENTENCES[3:]]


def load(path: Path, text_attention: str = "comfyui") -> TextEncoder:
    return load_text_encoder(path, device=CPU, dtype=torch.float32, text_attention=text_attention)


@pytest.fixture(scope="module")
def split_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("text"), "text_encoder")


def reference(prompt: str, softcap: float | None = None) -> Tensor:
    """The whole Gemma2's second-last hidden state, one prompt at a time."""
    ids = sentencepiece.SentencePieceProcessor(model_proto=train_spiece(), add_bos=True).encode(prompt)[:256]
    with torch.no_grad():
        return tiny_gemma(softcap)(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][0]


@pytest.mark.parametrize("text_attention", TEXT_ATTENTIONS)
def test_batch_equals_whole_model_prompt_by_prompt(text_attention: str, split_path: Path) -> None:
    embeds = load(split_path, text_attention).encode(PROMPTS)
    for prompt, actual in zip(PROMPTS, embeds, strict=True):
        expected = reference(prompt, TEXT_ATTENTIONS[text_attention])
        assert actual.shape == expected.shape
        assert actual.dtype == torch.float32
        assert relative_error(actual, expected) <= 1e-5


def test_text_attentions_differ(split_path: Path) -> None:
    ours = [load(split_path, attention).encode([SENTENCES[0]])[0] for attention in TEXT_ATTENTIONS]
    assert relative_error(ours[0], ours[1]) > 1e-7


@pytest.mark.parametrize("layout", ["all_in_one", "diffusers"])
def test_every_layout_gives_the_same_embeddings(layout: str, split_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (write_all_in_one if layout == "all_in_one" else write_diffusers_folder)(path)
    for actual, expected in zip(load(path).encode(PROMPTS), load(split_path).encode(PROMPTS), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_bf16_weights_are_computed_with_in_float32(tmp_path: Path) -> None:
    rounded = {n: t.bfloat16() if t.is_floating_point() else t for n, t in split_state("text_encoder").items()}
    path = write_split(tmp_path, "text_encoder", rounded)
    stored = load_text_encoder(path, device=CPU, dtype=torch.bfloat16, text_attention="comfyui")
    assert {p.dtype for p in stored.model.parameters()} == {torch.bfloat16}
    for actual, expected in zip(stored.encode(SENTENCES), load(path).encode(SENTENCES), strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, expected) <= 1e-6


def test_empty_prompt_is_the_first_token_alone(split_path: Path) -> None:
    assert load(split_path).encode([""])[0].shape == (1, GEMMA_WIDTH)


def test_prompts_are_cut_to_256_tokens_but_counted_whole(split_path: Path) -> None:
    encoder = load(split_path)
    prompt = "chair " * 400
    assert encoder.encode([prompt])[0].shape[0] == 256
    assert count_tokens(encoder.tokenizer, prompt) > 400
    assert count_tokens(encoder.tokenizer, "") == 1


def test_escaped_parentheses_are_plain_parentheses(split_path: Path) -> None:
    plain, escaped = load(split_path).encode(["a (red) chair", "a \\(red\\) chair"])
    assert relative_error(escaped, plain) <= 1e-5


def test_last_layer_and_final_norm_are_not_loaded(split_path: Path) -> None:
    encoder = load(split_path)
    assert len(encoder.model.layers) == 2
    assert not any(p.is_meta for p in encoder.model.parameters())
    assert not any(p.requires_grad for p in encoder.model.parameters())


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a (red:1.2) chair", r'"a \(red:1\.2\) chair" has a parenthesis that ComfyUI reads as a weight'),
        ("embedding:easy", "embedding:, which ComfyUI replaces"),
        ("in style\nembedding:easy", "embedding:, which ComfyUI replaces"),
        ("a {red|blue} chair", "has a brace that ComfyUI's page reads as a choice"),
        ("see http://a.b", "removes the text as a comment"),
        ("chair " * 300, r"\.\.\.\" has \d+ tokens: training reads the first 256, ComfyUI reads them all"),
    ],
)
def test_differences_name_the_caption_and_the_reason(caption: str, message: str, split_path: Path) -> None:
    prompt = build_prompt(caption, SYSTEM_PROMPTS["anime"])
    (found,) = describe_differences(load(split_path).tokenizer, ["a plain chair, 1:2 :)", prompt])
    assert re.search(message, found), found


def test_escaped_syntax_is_no_difference(split_path: Path) -> None:
    prompts = ["a \\(red\\) \\{chair\\}, myembedding:x", "", "😀 一只猫"]
    assert describe_differences(load(split_path).tokenizer, prompts) == []


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    """The tiny text encoder with tensors replaced, added or (None) left out; "__" stands for "."."""
    named = {f"model.{n.replace('__', '.')}" if "__" in n else n: t for n, t in changes.items()}
    state: dict[str, Tensor | None] = {**split_state("text_encoder"), **named}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: changed(spiece_model=None), "has no spiece_model, the tokenizer"),
        (lambda: changed(layers__1__mlp__up_proj__weight=None), r"lacks the tensor layers\.1\.mlp\.up_proj\.weight"),
        (lambda: changed(layers__0__self_attn__q_norm__weight=torch.ones(256)), "a language model other than Gemma2"),
        (lambda: changed(layers__0__post_feedforward_layernorm__weight=None), "a language model other than Gemma2"),
        (lambda: changed(layers__0__self_attn__q_proj__weight=torch.ones(96, 40)), "has 96 query rows"),
        (lambda: changed(norm__weight=torch.ones(7)), r"norm\.weight of shape \[7\] where \[40\]"),
        (lambda: split_state("vae"), "is no Gemma2 but a VAE"),
        (lambda: split_state("transformer"), "is no Gemma2: choose"),
        (lambda: {"text_model.embeddings.position_ids": torch.ones(1)}, "is no Gemma2: choose"),
    ],
)
def test_wrong_text_encoders_are_refused(state: Callable[[], dict[str, Tensor]], message: str, tmp_path: Path) -> None:
    path = write_split(tmp_path, "text_encoder", state())
    with pytest.raises(TrainerError, match=message):
        find_text_files(path)


def test_damaged_or_foreign_tokenizers_are_refused(tmp_path: Path) -> None:
    broken = torch.zeros(100, dtype=torch.uint8)
    with pytest.raises(TrainerError, match="has a damaged tokenizer"):
        load(write_split(tmp_path, "text_encoder", changed(spiece_model=broken)))
    small = torch.ones(10, GEMMA_WIDTH)
    with pytest.raises(TrainerError, match=r"embeds 10 tokens but its tokenizer has \d+"):
        load(write_split(tmp_path, "text_encoder", changed(**{"embed_tokens__weight": small})))


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"without text_encoder/config\.json"):
        find_text_files(tmp_path)
    folder = write_diffusers_folder(tmp_path / "model")
    config_path = folder / "text_encoder" / "config.json"
    config_path.write_text(json.dumps({**json.loads(config_path.read_text()), "model_type": "gemma"}))
    with pytest.raises(TrainerError, match="is a gemma with heads of 256"):
        find_text_files(folder)
    (folder / "tokenizer" / "tokenizer.model").unlink()
    with pytest.raises(TrainerError, match=r"without tokenizer/tokenizer\.model"):
        find_text_files(folder)
