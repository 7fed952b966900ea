"""tokenizer.json gives SentencePiece's ids, in transformers' own class."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from lumina2_trainer.trainer_core.lumina2.encoders.text_files import find_text_files
from lumina2_trainer.trainer_core.lumina2.models.base_files import DEMO_MODEL_PATH
from lumina2_trainer.trainer_core.lumina2.models.diffusers_folder import read_pieces, write_tokenizer

from ..tiny_files import SENTENCES, train_spiece

USER_DEFINED = ["\n\n", "<table>", "\u2581\u2581", "<unused0>"]
TEXTS = [
    *SENTENCES,
    "",
    " leading and  double   spaces ",
    "two\nlines\n\nand a\ttab",
    "<table> and <unused0> inside",
    "a (red:1.2) \\(chair\\)",
    "👩‍🚀 zz ẞ",
    "word " * 60,
    "一只猫睡在屋顶上，看着月亮",
]


def train_like_gemma() -> bytes:
    """Byte pairs with pieces that are found before any other, as Gemma has them for blanks and markup."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=USER_DEFINED,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    return model.getvalue()


SPIECES = {
    "tiny": train_spiece,
    "gemma": train_like_gemma,
    "demo": lambda: find_text_files(DEMO_MODEL_PATH).read_spiece(),
}


@pytest.mark.parametrize("name", SPIECES)
def test_pieces_are_those_of_the_library(name: str) -> None:
    spiece = SPIECES[name]()
    library = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    pieces = read_pieces(spiece)
    assert [p.text for p in pieces] == [library.id_to_piece(i) for i in range(library.get_piece_size())]
    assert [p.score for p in pieces] == [library.get_score(i) for i in range(len(pieces))]
    assert {p.text for p in pieces if p.kind == 4} == (set(USER_DEFINED) if name == "gemma" else set())


@pytest.mark.parametrize("name", SPIECES)
def test_ids_equal_sentencepiece(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GemmaTokenizerFast

    spiece = SPIECES[name]()
    write_tokenizer(spiece, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "GemmaTokenizer"
    library = sentencepiece.SentencePieceProcessor(model_proto=spiece, add_bos=True)
    for theirs in (GemmaTokenizerFast.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        for text in TEXTS:
            assert theirs(text)["input_ids"] == library.encode(text), text
