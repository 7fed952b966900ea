"""The demo model's SentencePiece vocabulary, set up as Gemma's: BPE, bytes for unknown characters, no dummy prefix."""

from __future__ import annotations

import io

import sentencepiece

VOCABULARY_SIZE = 1536


def train_vocabulary(captions: list[str], system_prompts: list[str], size: int = VOCABULARY_SIZE) -> bytes:
    """Learn the pieces.

    Args:
        captions: What the model is trained on.
        system_prompts: Texts that users may put before a caption.
        size: Number of pieces, bytes included.

    Returns:
        The bytes of a SentencePiece model.
    """
    # A caption is also met after a trigger word, where its first word follows a space.
    sentences = [*captions, *(f"style, {caption}" for caption in captions), *system_prompts]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def load_vocabulary(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """A tokenizer that puts BOS first."""
    return sentencepiece.SentencePieceProcessor(model_proto=model, add_bos=True)
