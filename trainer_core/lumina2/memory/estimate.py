"""How much GPU memory a training step takes, counted from shapes before a weight is read.

What a block keeps for its backward pass, and what that pass needs at once, are sums over its layers: see
`network/transformer.py` and `recompute.py`. `benchmarks/memory.py` compares them with measured peaks; tests with a
simulated step.

Letters for bytes of one token: D residual stream, X fused qkv product, R rotated queries and keys, F one of the two
products of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from .block_swap import NUM_SLOTS
from .recompute import slices
from .sizes import BatchSize, DeviceFacts, ModelSize

FEED_LAYERS = {"feed_forward.w1", "feed_forward.w2", "feed_forward.w3"}
FINAL_BYTES = 16
"""Of each value of the last layer: its norm is float32 in both passes."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is done to save memory; see `RecomputeBlocks`."""

    num_recomputed: int = 0
    feed_slice: int | None = None
    num_keeping: int = 0
    keeps_feed: bool = True
    """Those keep the MLP's result beside attention's, see `StepEstimate.can_keep_feed`."""
    num_offloaded: int = 0
    """Of the first blocks, the inputs are kept in host memory."""
    swapped: tuple[int, ...] = ()
    """Numbers of blocks whose frozen matrices are in host memory."""


@dataclass(frozen=True)
class StepEstimate:
    """Predicts the peak of one step."""

    model: ModelSize
    batch: BatchSize
    device: DeviceFacts

    @property
    def input_bytes(self) -> int:
        """Of the largest input of a block."""
        tokens = self.batch.caption_tokens + self.batch.image_tokens
        return tokens * self.model.config.hidden_size * self.model.itemsize

    @property
    def can_keep_feed(self) -> bool:
        """Whether a recomputed block can keep the result of its MLP: where that is computed as one."""
        return not all(self._is_plain_feed(index) for index in range(len(self.model.blocks)))

    def peak(self, measures: Measures) -> int:
        """Bytes allocated at the worst moment of a step."""
        model, num_blocks = self.model, len(self.model.blocks)
        kept = [self._kept(i, measures) for i in range(num_blocks)]
        share = 0.0 if model.gradients_stay else model.gradient_bytes / num_blocks
        moments = [sum(kept) + FINAL_BYTES * model.config.hidden_size * self.batch.image_tokens]
        for i in range(num_blocks):
            gradients = share * (num_blocks - 1 - i)
            moments.append(sum(kept[: i + 1]) + self._at_once(i, measures) + gradients)
        return round(self.static(measures) + max(moments))

    def static(self, measures: Measures) -> int:
        """Bytes that are allocated all the time."""
        model, batch, config = self.model, self.batch, self.model.config
        matrices = [block.matrix_bytes for block in model.blocks]
        swapped = [matrices[i] for i in measures.swapped]
        slots = max(swapped, default=0) * min(NUM_SLOTS, len(swapped))
        inputs = batch.image_tokens * config.patch_channels * (8 + model.itemsize)
        inputs += batch.caption_tokens * config.cap_feat_dim * (4 + model.itemsize)
        inputs += (batch.image_tokens + batch.caption_tokens) * config.head_size * 8  # rotary tables of two streams
        gradients = model.gradient_bytes if model.gradients_stay else 0
        workspaces = 2 * self.device.workspace_bytes
        weights = sum(matrices) - sum(swapped) + slots + model.fixed_bytes + model.optimizer_bytes
        return weights + gradients + inputs + workspaces

    def _tokens(self, index: int) -> int:
        refiners = self.model.config.num_refiner_layers
        caption, image = self.batch.caption_tokens, self.batch.image_tokens
        return caption if index < refiners else image if index < 2 * refiners else caption + image

    @cached_property
    def _sizes(self) -> tuple[int, int, int, int]:
        """D, X, R and F, see above."""
        config, itemsize = self.model.config, self.model.itemsize
        qkv = sum(config.qkv_rows)
        return tuple(  # type: ignore[return-value]
            itemsize * size for size in (config.hidden_size, qkv, qkv - config.qkv_rows[2], config.mlp_size)
        )

    @property
    def _repeated(self) -> int:
        """Bytes of a token's keys and values, repeated for every query head."""
        return 2 * self._sizes[0] if self.batch.is_ragged else 0

    def _kept(self, index: int, measures: Measures) -> float:
        """Bytes that a block keeps between the passes."""
        D, X, R, F = self._sizes
        tokens = self._tokens(index)
        if index < measures.num_recomputed:
            inputs = 0 if index < measures.num_offloaded else D
            attention, feed = self._kept_results(index, measures)
            return tokens * (inputs + attention + feed)
        adapted = self.model.blocks[index].adapted
        attention = X + R + 2 * D + self._repeated + self.model.config.num_attention_heads * 4
        attention += D if "attention.qkv" in adapted else 0
        feed = 2 * F + D + (D if adapted & {"feed_forward.w1", "feed_forward.w3"} else 0)
        feed += F if "feed_forward.w2" in adapted and self._is_plain_feed(index) else 0
        return tokens * (attention + feed + 2 * D + self._dropout_bytes(adapted))

    def _kept_results(self, index: int, measures: Measures) -> tuple[int, int]:
        """Bytes of a token that a recomputed block keeps of its attention, with the softmax's sums, and of its MLP."""
        if index < measures.num_recomputed - measures.num_keeping:
            return 0, 0
        D = self._sizes[0]
        return D + 4 * self.model.config.num_attention_heads, 0 if self._is_plain_feed(index) else D

    def _is_plain_feed(self, index: int) -> bool:
        """The MLP is computed layer by layer, so its hidden values are kept and passed on."""
        has_dropout = self.model.has_dropout and bool(self.model.blocks[index].adapted & FEED_LAYERS)
        return self.model.is_whole or has_dropout or not self.device.is_fused

    def _dropout_bytes(self, adapted: Iterable[str]) -> float:
        """A mask of a byte and the remaining values, for each input of an adapted layer."""
        if not self.model.has_dropout:
            return 0
        D, _, _, F = self._sizes
        inputs = sum(F if layer == "feed_forward.w2" else D for layer in adapted)
        return inputs * (1 + 1 / self.model.itemsize)

    def _at_once(self, index: int, measures: Measures) -> float:
        """Bytes that a block's backward pass needs beside what is kept."""
        D, X, R, F = self._sizes
        block, tokens = self.model.blocks[index], self._tokens(index)
        norms = D if block.trains_norms else 0  # times how many of them are alive in float32
        if index >= measures.num_recomputed:
            return tokens * max(F + D + 3 * norms, 2 * X) + self._quantized(tokens)
        dropout = self._dropout_bytes(block.adapted) * tokens
        rows = self._largest_slice(tokens, measures.feed_slice)
        attention_kept, feed_kept = self._kept_results(index, measures)
        inside = X + R + 2 * D + self._repeated - attention_kept  # qkv, queries and keys, attention's input and output
        feed = (inside + 4 * D + 2 * norms) * tokens + (3 * F + 3 * D - feed_kept) * rows + self._quantized(rows)
        if self._is_plain_feed(index):
            feed += 2 * F * rows
        join = (inside + 5 * D + 6 * norms) * tokens
        sums = 2 * D  # attention adds up its queries' gradient in float32
        attention = (inside + 2 * D + X + self._repeated + sums * 2 / self.model.itemsize) * tokens
        arriving = D * tokens if index <= measures.num_offloaded else 0
        return max(feed, join, attention) + dropout + arriving + (0 if self.device.is_fused else 4 * D * tokens)

    def _quantized(self, rows: int) -> int:
        """In 8 bits the gradients of the MLP and the transposed matrices they are multiplied with; in 4 the matrix."""
        config = self.model.config
        return 2 * config.mlp_size * (rows + config.hidden_size) if self.model.is_8_bit else self.model.unpacked_bytes

    def _largest_slice(self, tokens: int, feed_slice: int | None) -> int:
        if feed_slice is None or feed_slice >= tokens:
            return tokens
        first = next(iter(slices(tokens, feed_slice)))
        return first.stop - first.start
