"""Gemma's SentencePiece model as the tokenizer.json that transformers reads.

transformers can convert it too, but only with protobuf and sentencepiece installed; with this file it needs neither.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Kinds of pieces that are treated differently; the others are bytes and unused pieces."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of the vocabulary."""

    text: str
    score: float
    """The higher, the earlier its parts are joined."""
    kind: int


def read_pieces(spiece: bytes) -> list[Piece]:
    """The vocabulary of a SentencePiece file, in the order of token ids.

    Source: sentencepiece, src/sentencepiece_model.proto: field 1 of the model is a piece, with text, score and kind.
    """
    pieces = []
    for number, value in _read_fields(spiece):
        if number == 1 and isinstance(value, bytes):
            fields = dict(_read_fields(value))
            text, score, kind = fields[1], fields.get(2, b"\0\0\0\0"), fields.get(3, NORMAL)
            assert isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int), "no piece"
            pieces.append(Piece(text=text.decode(), score=struct.unpack("<f", score)[0], kind=kind))
    return pieces


def _read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message, https://protobuf.dev/programming-guides/encoding."""
    position = 0

    def read_varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        number, wire_type = divmod(read_varint(), 8)
        if wire_type == 0:
            yield number, read_varint()
            continue
        length = {1: 8, 5: 4}.get(wire_type) or read_varint()
        yield number, data[position : position + length]
        position += length


def build_tokenizer(spiece: bytes, bos_id: int) -> Tokenizer:
    """A tokenizer that gives the ids of SentencePiece's byte-pair encoding, the beginning of the sequence first.

    Args:
        spiece: The SentencePiece file.
        bos_id: Token id of the beginning of the sequence.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = read_pieces(spiece)
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    model = models.BPE(
        vocab=vocabulary, merges=_find_merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [piece.text for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(p.text, normalized=True) for p in pieces if p.kind == USER_DEFINED])
    bos = pieces[bos_id].text
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )
    return tokenizer


def _find_merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes another, the highest score first: SentencePiece keeps the result only."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    pairs = [
        (text[:cut], text[cut:])
        for text in sorted(scores, key=lambda text: -scores[text])
        for cut in range(1, len(text))
    ]
    return [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
