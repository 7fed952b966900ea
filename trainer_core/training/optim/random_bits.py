"""Random bits as a pure function of a seed and a position, so that no generator state has to be kept.

Philox 4x32 with 7 rounds, the fewest that pass TestU01's BigCrush (Salmon et al., Parallel Random Numbers: As Easy as
1, 2, 3, SC 2011). `tl.philox` of Triton makes the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_ROUNDS = 7
WORD_MASK = 0xFFFFFFFF
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85


def random_words(seed: int, first: int, count: int, stream: int, step: int, device: torch.device) -> Tensor:
    """32 random bits for each of a row of elements.

    Args:
        seed: 64 bits.
        first: Index of the first element; a multiple of 4.
        count: Number of elements; a multiple of 4.
        stream: Tells apart what is drawn for different tensors, 32 bits.
        step: Tells apart what is drawn at different times, 32 bits.
        device: Where the words are made.

    Returns:
        [count] int64 in [0, 2**32).
    """
    assert first % 4 == 0 and count % 4 == 0, "one draw of Philox serves four elements"
    c0 = torch.arange(first // 4, (first + count) // 4, dtype=torch.int64, device=device)
    c1, c2, c3 = torch.full_like(c0, stream), torch.full_like(c0, step), torch.zeros_like(c0)
    k0, k1 = seed & WORD_MASK, (seed >> 32) & WORD_MASK
    for _ in range(NUM_ROUNDS):
        # An int64 product wraps around, and its 64 bits are those of the unsigned product.
        product_a, product_b = c0 * ROUND_A, c2 * ROUND_B
        c0, c1 = (product_b >> 32 & WORD_MASK) ^ c1 ^ k0, product_b & WORD_MASK
        c2, c3 = (product_a >> 32 & WORD_MASK) ^ c3 ^ k1, product_a & WORD_MASK
        k0, k1 = (k0 + KEY_A) & WORD_MASK, (k1 + KEY_B) & WORD_MASK
    return torch.stack((c0, c1, c2, c3), -1).flatten()  # [count / 4, 4] -> [count]
