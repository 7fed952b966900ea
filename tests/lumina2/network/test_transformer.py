"""Our network against diffusers' and against itself in other ways of running."""

from __future__ import annotations

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.network.layout import patchify, unpatchify
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.ops.attention import Segments, attend

from ..diffusers_reference import diffusers_transformer, run_diffusers
from ..tiny_models import CPU, TINY, random_samples, relative_error, run_packed, tiny_transformer

DIFFERENT = [(5, 6, 10), (1, 4, 4), (11, 8, 6), (299, 2, 14)]
EQUAL = [(7, 6, 10), (7, 6, 10)]
ONE = [(9, 10, 6)]


@pytest.mark.parametrize("sizes", [DIFFERENT, EQUAL, ONE], ids=["different", "equal", "one"])
def test_packed_batch_equals_diffusers_sample_by_sample(sizes: list[tuple[int, int, int]]) -> None:
    transformer = tiny_transformer()
    latents, embeds, timesteps_B = random_samples(sizes)
    expected = run_diffusers(diffusers_transformer(transformer), latents, embeds, timesteps_B)
    with torch.no_grad():
        actual = run_packed(transformer, latents, embeds, timesteps_B)
    for ours, theirs in zip(actual, expected, strict=True):
        assert relative_error(ours, theirs) <= 1e-5


def test_gradients_of_a_packed_batch_equal_those_of_single_samples() -> None:
    transformer = tiny_transformer()
    latents, embeds, timesteps_B = random_samples(DIFFERENT)
    for out in run_packed(transformer, latents, embeds, timesteps_B):
        out.square().sum().backward(retain_graph=True)
    packed = {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()
    for i in range(len(latents)):
        run_packed(transformer, latents[i : i + 1], embeds[i : i + 1], timesteps_B[i : i + 1])[
            0
        ].square().sum().backward()
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None, name
        assert relative_error(packed[name], parameter.grad) <= 1e-4, name


def test_another_sample_in_the_batch_changes_nothing() -> None:
    transformer = tiny_transformer()
    latents, embeds, timesteps_B = random_samples(DIFFERENT)
    with torch.no_grad():
        before = run_packed(transformer, latents, embeds, timesteps_B)
        after = run_packed(transformer, [latents[0], -latents[1], *latents[2:]], embeds, timesteps_B)
    assert relative_error(after[0], before[0]) <= 1e-6
    assert relative_error(after[1], before[1]) > 1e-2


@pytest.mark.parametrize("lengths", [(3, 7, 1), (4, 4)])
def test_attention_equals_one_softmax_per_sample(lengths: tuple[int, ...]) -> None:
    query_SHE, key_SKE, value_SKE = (torch.randn(sum(lengths), heads, 8) for heads in (6, 2, 2))
    out = attend(query_SHE, key_SKE, value_SKE, Segments.build(lengths, CPU))
    expected = []
    for query, key, value in zip(*(x.split(lengths) for x in (query_SHE, key_SKE, value_SKE)), strict=True):
        key, value = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
        weights_HNN = torch.softmax(torch.einsum("qhe,khe->hqk", query, key) / 8**0.5, -1)
        expected.append(torch.einsum("hqk,khe->qhe", weights_HNN, value))
    torch.testing.assert_close(out, torch.cat(expected))


def test_unpatchify_undoes_patchify() -> None:
    latents = torch.arange(16 * 6 * 10.0).reshape(16, 6, 10)
    tokens = patchify(latents)
    assert tokens.shape == (15, 64)
    # Token 0, second column of the first row of the patch, channel 1.
    assert tokens[0, 16 + 1] == latents[1, 0, 1]
    torch.testing.assert_close(unpatchify(tokens, 3, 5), latents)


def test_default_config_is_lumina_image_2() -> None:
    from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config

    with torch.device("meta"):
        transformer = Lumina2Transformer(Lumina2Config())
    assert round(sum(p.numel() for p in transformer.parameters()) / 1e9, 2) == 2.61
    assert transformer.layers[25].attention.qkv.weight.shape == (3840, 2304)
    assert TINY.qkv_rows == (96, 48, 48)
