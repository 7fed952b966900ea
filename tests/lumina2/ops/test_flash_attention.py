"""What is handed to FlashAttention 4, and when; its kernels, which need a GPU, are replaced by PyTorch's attention."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.network.layout import PaddedLengths, TokenLayout, patchify
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.ops import attention, flash_attention
from torch import Tensor

from ..tiny_models import CPU, random_samples, relative_error, tiny_transformer

SAMPLES = random_samples([(5, 6, 10), (9, 8, 8), (2, 6, 10)])
PADDED = PaddedLengths(caption=12, image=20)


class PlainKernels:
    """As `flash_attn.cute.interface`, by parts."""

    def __init__(self) -> None:
        self.num_forward = 0

    def _flash_attn_fwd(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, ...]:
        self.num_forward += 1
        assert options["return_lse"]
        return _attend(query, key, value, options), torch.zeros(query.shape[1], len(query)), None

    def _flash_attn_bwd(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, sums: Tensor, **options: Any
    ) -> tuple[Tensor, ...]:
        assert sums.shape == (query.shape[1], len(query)) and out.shape == query.shape
        leaves = [x.detach().requires_grad_() for x in (query, key, value)]
        with torch.enable_grad():
            return torch.autograd.grad(_attend(*leaves, options), leaves, grad)


def _attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    offsets = options["cu_seqlens_q"]
    assert offsets.dtype is torch.int32 and torch.equal(offsets, options["cu_seqlens_k"])
    assert offsets[0] == 0 and offsets[-1] == len(query)
    lengths = offsets.diff().tolist()
    assert max(lengths) <= options["max_seqlen_q"] == options["max_seqlen_k"]
    parts = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part), enable_gqa=True)[0].transpose(0, 1)
        for part in zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
        if len(part[0])
    ]
    return torch.cat(parts)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> PlainKernels:
    """FlashAttention on the CPU."""
    plain = PlainKernels()
    monkeypatch.setattr(flash_attention, "_load_kernels", lambda: plain)
    return plain


def run(transformer: Lumina2Transformer, padded: PaddedLengths | None, samples: Any = SAMPLES) -> list[Tensor]:
    """The loss and all gradients in bfloat16."""
    latents, prompts, timesteps = samples
    layout = TokenLayout.build(
        tuple(len(prompt) for prompt in prompts),
        tuple((x.shape[1] // 2, x.shape[2] // 2) for x in latents),
        transformer.config.axes_dims,
        timesteps.device,
        padded,
    )
    image_TC = torch.cat([_fill(patchify(x), padded and padded.image) for x in latents]).bfloat16()
    prompts_L = torch.cat([_fill(prompt, padded and padded.caption) for prompt in prompts]).bfloat16()
    transformer.zero_grad()
    velocity_TC = transformer(image_TC, timesteps, prompts_L, layout).float()
    loss_B = layout.image.mean_by_sample(velocity_TC.square().mean(-1))
    loss_B.sum().backward()
    return [loss_B.detach(), *(p.grad.clone() for p in transformer.parameters() if p.grad is not None)]


def _fill(x: Tensor, length: int | None) -> Tensor:
    return F.pad(x, (0, 0, 0, (length or len(x)) - len(x)))


@pytest.mark.parametrize("padded", [None, PADDED], ids=["ragged", "padded"])
def test_it_takes_the_place_of_attention(
    kernels: PlainKernels, monkeypatch: pytest.MonkeyPatch, padded: PaddedLengths | None
) -> None:
    transformer = tiny_transformer().bfloat16()
    expected = run(transformer, None)
    monkeypatch.setattr(attention, "has_flash_attention", lambda _: True)
    actual = run(transformer, padded)
    assert kernels.num_forward == len(transformer.blocks)
    assert len(actual) == len(expected) > 50
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-2, atol=0)
    errors = [relative_error(x, y) for x, y in zip(actual[1:], expected[1:], strict=True) if y.any()]
    assert sorted(errors)[len(errors) // 2] < 0.03 and max(errors) < 0.15


def test_its_result_is_kept_where_a_block_is_recomputed(kernels: PlainKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = tiny_transformer().bfloat16()
    monkeypatch.setattr(attention, "has_flash_attention", lambda _: True)
    expected = run(transformer, PADDED)
    counts = []
    for num_keeping in (0, 100):
        kernels.num_forward = 0
        transformer.run_block = RecomputeBlocks(num_recomputed=100, num_keeping=num_keeping)
        torch.testing.assert_close(run(transformer, PADDED), expected, rtol=0, atol=0)
        counts.append(kernels.num_forward)
    assert counts == [2 * len(transformer.blocks), len(transformer.blocks)]


def test_short_sequences_use_the_kernels_of_the_trial(kernels: PlainKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[int] = []
    right = kernels._flash_attn_fwd
    monkeypatch.setattr(
        kernels,
        "_flash_attn_fwd",
        lambda *args, **options: right(*args, **options, announced=announced.append(options["max_seqlen_q"])),
    )
    monkeypatch.setattr(attention, "has_flash_attention", lambda _: True)
    for length in (1, 40, 300):
        x_SHE = torch.randn(length, 4, 16).bfloat16()
        attention.attend(x_SHE, x_SHE[:, :2], x_SHE[:, :2], attention.Segments.build((length,), CPU))
    assert announced == [flash_attention.MIN_LONGEST] * 2 + [300]


def test_float32_goes_by_pytorch(kernels: PlainKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "has_flash_attention", lambda _: True)
    segments = attention.Segments.build((4, 4), CPU)
    attention.attend(torch.randn(8, 4, 16), torch.randn(8, 2, 16), torch.randn(8, 2, 16), segments)
    assert kernels.num_forward == 0


def test_the_trial_compares_results_and_gradients(kernels: PlainKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < flash_attention._trial_error(CPU) < flash_attention.MAX_TRIAL_ERROR
    right = kernels._flash_attn_bwd
    monkeypatch.setattr(kernels, "_flash_attn_bwd", lambda *args, **options: [1.1 * x for x in right(*args, **options)])
    assert flash_attention._trial_error(CPU) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("trial", "words"),
    [(lambda _: 0.003, None), (lambda _: float("nan"), "other numbers"), (lambda _: 1 / 0, "fails in a trial")],
)
def test_what_does_not_work_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trial: Any, words: str | None
) -> None:
    monkeypatch.setattr(flash_attention, "_load_kernels", lambda: SimpleNamespace())
    monkeypatch.setattr(flash_attention, "_trial_error", trial)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(current.append(device)))
    with caplog.at_level(logging.INFO):
        assert flash_attention._passes_trial.__wrapped__(1) is (words is None)
    assert (words or "Attention is FlashAttention 4's") in caplog.text
    assert ("Attention is" in caplog.text) is (words is None)
    assert current == [torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert not flash_attention._passes_trial.__wrapped__(0)


@pytest.mark.parametrize("is_installed", [False, True])
def test_a_missing_package_is_told_from_one_that_misses_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, is_installed: bool
) -> None:
    package = tmp_path / "broken_flash"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "interface.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    name = "broken_flash.interface" if is_installed else "no_such_package.interface"
    monkeypatch.setattr(flash_attention, "MODULE", name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    flash_attention._load_kernels.cache_clear()
    assert not flash_attention._passes_trial.__wrapped__(0)
    assert ("no_such_dependency" in caplog.text) is is_installed
    assert bool(caplog.records) is is_installed
