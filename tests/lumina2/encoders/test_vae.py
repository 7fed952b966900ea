"""Loading VAEs and their latents."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.lumina2.encoders.vae import (
    LatentEncoder,
    check_vae,
    decode_latents,
    encode_pixels,
    load_latent_encoder,
    load_vae,
)
from lumina2_trainer.trainer_core.lumina2.encoders.vae_names import to_ldm_name, to_ldm_state_dict
from safetensors.torch import save_file
from torch import Tensor

from ..tiny_files import split_state, tiny_vae, write_all_in_one, write_diffusers_folder, write_split
from ..tiny_models import CPU, relative_error


@pytest.mark.parametrize("layout", ["all_in_one", "ldm", "diffusers_file", "diffusers_folder"])
def test_every_layout_gives_the_same_vae(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    writers: dict[str, Callable[[], object]] = {
        "all_in_one": lambda: write_all_in_one(path),
        "ldm": lambda: write_split(tmp_path, "vae"),
        "diffusers_file": lambda: save_file(tiny_vae().state_dict(), path),
        "diffusers_folder": lambda: write_diffusers_folder(path),
    }
    writers[layout]()
    vae = load_vae(path, device=CPU, dtype=torch.float32)
    assert not any(p.requires_grad for p in vae.parameters())
    expected = tiny_vae().state_dict()
    assert vae.state_dict().keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(vae.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(("channels", "layers"), [((32, 64, 96, 96), 2), ((128, 256, 512, 512), 2), ((32,) * 4, 1)])
def test_channels_and_layers_are_inferred(channels: tuple[int, ...], layers: int, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in tiny_vae(channels, layers).state_dict().items()}
    state = {name: torch.zeros(shape, dtype=torch.float8_e4m3fn) for name, shape in shapes.items()}
    save_file({n: t.contiguous() for n, t in to_ldm_state_dict(state).items()}, tmp_path / "ae.safetensors")
    vae = load_vae(tmp_path / "ae.safetensors", device=CPU, dtype=torch.bfloat16)
    assert tuple(vae.config.block_out_channels) == channels
    assert vae.config.layers_per_block == layers
    assert vae.dtype == torch.bfloat16


@pytest.mark.process
def test_a_check_needs_no_diffusers(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from lumina2_trainer.trainer_core.lumina2.encoders.vae import check_vae;"
    )
    script += f"check_vae(Path({str(write_split(tmp_path, 'vae'))!r})); assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_latents_are_the_shifted_and_scaled_mode(tmp_path: Path) -> None:
    vae = load_vae(write_split(tmp_path, "vae"), device=CPU, dtype=torch.float32)
    pixels = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_pixels(vae, pixels)
    assert latents.shape == (2, 16, 3, 5)
    with torch.no_grad():
        mean = tiny_vae().encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents, (mean - 0.1159) * 0.3611)
    torch.testing.assert_close(encode_pixels(vae, pixels), latents, rtol=0, atol=0)


def test_decoding_takes_the_networks_latents_back_to_pixels(tmp_path: Path) -> None:
    vae = load_vae(write_split(tmp_path, "vae"), device=CPU, dtype=torch.float32)
    latents = torch.randn(1, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    pixels = decode_latents(vae, latents)
    assert pixels.shape == (1, 3, 24, 40)
    with torch.no_grad():
        expected = tiny_vae().decode(latents / 0.3611 + 0.1159).sample / 2 + 0.5
    torch.testing.assert_close(pixels, expected.clamp(0, 1))
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_ldm_names_stay_as_they_are() -> None:
    names = split_state("vae")
    assert [to_ldm_name(name) for name in names] == list(names)
    assert to_ldm_name("decoder.up_blocks.0.resnets.2.conv1.bias") == "decoder.up.3.block.2.conv1.bias"


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    """The tiny VAE with tensors replaced, added or (None) left out; "__" stands for "."."""
    state: dict[str, Tensor | None] = {**split_state("vae"), **{n.replace("__", "."): t for n, t in changes.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: changed(decoder__mid__attn_1__q__weight=None),
            r"lacks the tensor decoder\.mid\.attn_1\.q\.weight",
        ),
        (lambda: changed(decoder__extra__weight=torch.ones(1)), r"the tensor decoder\.extra\.weight too many"),
        (
            lambda: changed(encoder__conv_out__bias=torch.ones(8)),
            r"encoder\.conv_out\.bias of shape \[8\] where \[32\]",
        ),
        (lambda: changed(decoder__conv_in__weight=torch.ones(96, 4, 3, 3)), "has 4 latent channels on 4 levels"),
        (lambda: changed(decoder__conv_in__weight=None), "is no VAE of Lumina2: choose the Flux VAE"),
        (lambda: {"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, "is no VAE of Lumina2 but a Flux model"),
        (
            lambda: changed(encoder__down__0__block__0__conv1__weight=torch.ones(20, 20, 3, 3)),
            r"has \[20, 64, 96, 96\] channels: each must be a multiple of 32",
        ),
    ],
)
def test_wrong_vaes_are_refused(state: Callable[[], dict[str, Tensor]], message: str, tmp_path: Path) -> None:
    path = write_split(tmp_path, "vae", state())
    with pytest.raises(TrainerError, match=message):
        check_vae(path)


def test_folder_without_a_vae_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="is a folder without vae/"):
        check_vae(tmp_path)
    (tmp_path / "vae").mkdir()
    with pytest.raises(TrainerError, match=r"holds 0 \.safetensors files"):
        check_vae(tmp_path)


PICTURES = torch.randint(0, 256, (5, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vae_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("vae"), "vae")


def reference(path: Path, pictures: Tensor) -> Tensor:
    """diffusers' own VAE as loaded, one picture at a time."""
    vae = load_vae(path, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        means = [vae.encode(picture[None].float() / 127.5 - 1).latent_dist.mean for picture in pictures]
    return (torch.cat(means) - 0.1159) * 0.3611


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_equal_the_vae_picture_by_picture(batch_size: int, vae_path: Path) -> None:
    encoder = load_latent_encoder(vae_path, device=CPU)
    latents = torch.cat([encoder.encode(batch) for batch in PICTURES.split(batch_size)])
    assert latents.dtype == torch.float32
    for actual, expected in zip(latents, reference(vae_path, PICTURES), strict=True):
        assert relative_error(actual, expected) <= 1e-5


def test_layout_of_the_pictures_in_memory_changes_nothing(vae_path: Path) -> None:
    encoder = load_latent_encoder(vae_path, device=CPU)
    channels_last = PICTURES.contiguous(memory_format=torch.channels_last)
    before = channels_last.clone()
    assert torch.equal(encoder.encode(channels_last), encoder.encode(PICTURES))
    assert torch.equal(channels_last, before)


def test_attention_is_pytorchs_own(vae_path: Path) -> None:
    vae = load_vae(vae_path, device=CPU, dtype=torch.float32)
    assert isinstance(vae.encoder.mid_block.attentions[0].processor, AttnProcessor2_0)


def test_small_pictures_share_a_batch_and_large_ones_do_not(vae_path: Path) -> None:
    encoder = LatentEncoder(load_vae(vae_path, device=CPU, dtype=torch.float32), CPU)
    assert encoder.choose_batch_size(64, 64) == 4
    assert encoder.choose_batch_size(128, 128) == 1
    assert encoder.choose_batch_size(1024, 1024) == 1
