"""Which pictures and captions make up each batch: planned on the host, a block of steps at a time.

Shape suffixes: K steps of a block, B samples, N longest caption in tokens.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from lumina2_trainer.trainer_core.lumina2.encoders.prompts import UNCONDITIONAL, build_prompt
from torch import Tensor

MAX_CAPTION_TOKENS = 32
DROPPED_SHARE = 0.1
"""Captions replaced by the unconditional prompt."""
STYLE_SHARE = 0.45
"""Captions with made-up words before or behind them; their pictures are in made-up styles, if there are any."""


def caption_room(batch_size: int) -> int:
    """Caption tokens a batch may hold; the mean is below 6 for each sample."""
    return 8 * batch_size + 256


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A block of batches."""

    picture_KB: Tensor
    """[K, B] int64 index of each sample's picture."""
    token_ids_KBN: Tensor
    """[K, B, N] int64, padded on the right with 0."""
    lengths_KB: Tensor
    """[K, B] int64 tokens of each caption."""


class BatchPlanner:
    """Draws pictures without replacement, pass after pass, and a prompt for each."""

    def __init__(
        self,
        captions: list[str],
        vocabulary: sentencepiece.SentencePieceProcessor,
        *,
        batch_size: int,
        num_styles: int,
        seed: int,
    ) -> None:
        """Set up.

        Args:
            captions: Of the pictures.
            vocabulary: Tokenizer.
            batch_size: Samples of a batch.
            num_styles: Restyled copies of every picture; copy k of picture i has index k * len(captions) + i.
            seed: Of every draw.
        """
        self.captions = captions
        self.num_styles = num_styles
        self.vocabulary = vocabulary
        self.batch_size = batch_size
        self.order_rng = np.random.default_rng(seed)
        self.prompt_rng = random.Random(seed)
        self.known = vocabulary.encode([build_prompt(caption, "") for caption in captions])
        self.unconditional = vocabulary.encode(UNCONDITIONAL)
        self.pending = np.empty(0, dtype=np.int64)

    def draw(self, num_steps: int) -> BatchPlan:
        """The next block of batches."""
        count = num_steps * self.batch_size
        while len(self.pending) < count:
            self.pending = np.concatenate([self.pending, self.order_rng.permutation(len(self.captions))])
        pictures, self.pending = self.pending[:count], self.pending[count:]
        token_ids = torch.zeros(count, MAX_CAPTION_TOKENS, dtype=torch.int64)
        samples = [self._sample(int(picture)) for picture in pictures]
        prompts = [prompt for prompt, _ in samples]
        for row, prompt in zip(token_ids.numpy(), prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths_KB = torch.tensor([len(prompt) for prompt in prompts]).view(num_steps, -1)
        room = caption_room(self.batch_size)
        assert int(lengths_KB.sum(1).max()) <= room, f"a batch has more than {room} caption tokens"
        return BatchPlan(
            picture_KB=torch.tensor([picture for _, picture in samples]).view(num_steps, -1),
            token_ids_KBN=token_ids.view(num_steps, self.batch_size, -1),
            lengths_KB=lengths_KB,
        )

    def _sample(self, caption: int) -> tuple[list[int], int]:
        """Token ids of the prompt, and the index of the picture."""
        draw = self.prompt_rng.random()
        if draw < DROPPED_SHARE:
            return self.unconditional, caption + len(self.captions) * self.prompt_rng.randint(0, self.num_styles)
        if draw >= DROPPED_SHARE + STYLE_SHARE:
            return self.known[caption], caption
        words = " ".join(self._word() for _ in range(self.prompt_rng.randint(1, 2)))
        text = self.captions[caption]
        text = f"{words}, {text}" if self.prompt_rng.random() < 0.8 else f"{text}, {words}"
        style = self.prompt_rng.randint(1, self.num_styles) if self.num_styles else 0
        prompt = self.vocabulary.encode(build_prompt(text, ""))[:MAX_CAPTION_TOKENS]
        return prompt, caption + len(self.captions) * style

    def _word(self) -> str:
        if self.prompt_rng.random() < 0.3:
            return "style"
        characters = string.ascii_lowercase + (string.digits if self.prompt_rng.random() < 0.3 else "")
        return "".join(self.prompt_rng.choices(characters, k=self.prompt_rng.randint(3, 8)))
