"""The parts of scripts/demo_model that could go wrong without being noticed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

SCRIPTS_DIR = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS_DIR))
    for name in [name for name in sys.modules if name.split(".")[0] == "demo_model"]:
        monkeypatch.delitem(sys.modules, name)


def test_static_layout_gives_the_plain_layouts_loss_and_gradients() -> None:
    from demo_model.static_layout import RotaryRows, build_static_layout
    from lumina2_trainer.trainer_core.lumina2.network.layout import TokenLayout
    from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer

    torch.manual_seed(0)
    config = Lumina2Config(
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        cap_feat_dim=24,
        axes_dims=(8, 4, 4),
        mlp_size=48,
    )
    network, cpu, lengths, size = Lumina2Transformer(config), torch.device("cpu"), (3, 1, 7), (2, 3)
    rows = RotaryRows.build(9, size, config.axes_dims, cpu)
    plain = TokenLayout.build(lengths, (size,) * 3, config.axes_dims, cpu)
    static = build_static_layout(torch.tensor(lengths), 90, rows)
    embeds_L, image_TC, timesteps_B = torch.randn(90, 24), torch.randn(18, 64), torch.rand(3)
    results = []
    for embeds, layout in ((embeds_L[:11], plain), (embeds_L, static)):
        network.zero_grad()
        velocity_TC = network(image_TC, timesteps_B, embeds, layout)
        velocity_TC.square().sum().backward()
        results.append([velocity_TC.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_planner_puts_made_up_styles_behind_made_up_words_only() -> None:
    from demo_model.batches import BatchPlanner
    from demo_model.vocabulary import load_vocabulary, train_vocabulary

    captions = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("apple", "heart", "house")]
    prompts = ["a line of other words for the vocabulary"]
    vocabulary = load_vocabulary(train_vocabulary(captions, prompts, size=300))
    planner = BatchPlanner(captions, vocabulary, batch_size=9, num_styles=2, seed=0)
    plan = planner.draw(20)
    for picture, ids, length in zip(
        plan.picture_KB.flatten().tolist(),
        plan.token_ids_KBN.flatten(0, 1).tolist(),
        plan.lengths_KB.flatten().tolist(),
        strict=True,
    ):
        text = vocabulary.decode(ids[:length])
        assert text == "" or captions[picture % 9] in text
        assert (picture >= 9) == (text not in captions) or text == ""
    assert sorted((plan.picture_KB[0] % 9).tolist()) == list(range(9))


def test_folded_autoencoder_has_unit_latents_and_the_same_decoder_input() -> None:
    from demo_model.autoencoder import encode, fold_scale, make_autoencoder, to_float

    torch.manual_seed(0)
    vae = make_autoencoder()
    pictures = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        before = vae.decoder.conv_in(vae.encoder(to_float(pictures)).chunk(2, 1)[0])
        fold_scale(vae, pictures)
        after = vae.decoder.conv_in(vae.encoder(to_float(pictures)).chunk(2, 1)[0])
    inner = (..., slice(1, -1), slice(1, -1))  # zero padding means something else at the borders
    torch.testing.assert_close(after[inner], before[inner], rtol=1e-4, atol=1e-4)
    variance_C, mean_C = torch.var_mean(encode(vae, pictures), (0, 2, 3))
    torch.testing.assert_close(variance_C, torch.ones(16), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean_C, torch.zeros(16), rtol=1e-3, atol=1e-3)


def test_made_up_style_leaves_the_paper_white_and_changes_the_rest() -> None:
    from demo_model.styles import restyle

    picture = torch.full((4, 3, 64, 64), 255, dtype=torch.uint8)
    picture[:, :, 16:48, 16:48] = torch.tensor([200, 40, 30], dtype=torch.uint8)[:, None, None]
    styled = restyle(picture, torch.Generator().manual_seed(0))
    assert (styled[:, :, :2] == 255).all()
    assert (styled[0] != styled[1]).any()
    assert (styled[:, :, 30:34, 30:34] != picture[:, :, 30:34, 30:34]).any()
