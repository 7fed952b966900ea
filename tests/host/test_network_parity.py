"""Our network, text encoder and VAE equal the host's on the same files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.lumina2.encoders.text_encoder import (
    TextEncoder,
    count_tokens,
    describe_differences,
    load_text_encoder,
)
from lumina2_trainer.trainer_core.lumina2.encoders.vae import decode_latents, encode_pixels, load_vae
from lumina2_trainer.trainer_core.lumina2.encoders.vae_names import to_ldm_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..lumina2.tiny_files import tiny_vae, write_split
from ..lumina2.tiny_models import CPU, TINY, random_samples, relative_error, run_packed, tiny_transformer
from .checkouts import Host

SCRIPT = Path(__file__).resolve().parent / "script_parity.py"
HOST_SIZES = {
    "dim": TINY.hidden_size,
    "cap_feat_dim": TINY.cap_feat_dim,
    "n_layers": TINY.num_layers,
    "n_refiner_layers": TINY.num_refiner_layers,
    "n_heads": TINY.num_attention_heads,
    "n_kv_heads": TINY.num_kv_heads,
    "axes_dims": list(TINY.axes_dims),
}
SAMPLES = random_samples([(5, 6, 10), (1, 4, 4), (11, 8, 6), (299, 2, 14)])

SAME_PROMPTS = [
    "",
    "a red chair",
    "a red \\(wooden\\) chair \\(1:20\\)",
    "\\(\\(nested\\) and open \\(",
    "closed only :) 1:2",
    "a smiling face 😀👩‍🚀 on white",
    "एक लाल कुर्सी खिड़की के पास",
    "一只猫睡在屋顶上，看着月亮",
    "two\nlines,\ttabs  and   spaces ",
    "word " * 400,
]
DIFFERENT_PROMPTS = ["a (red:1.2) chair", "a (red) chair", "a red (chair", "((a red chair))"]


@dataclass(frozen=True, kw_only=True)
class HostResult:
    """What the host made of the files in a folder."""

    folder: Path
    num_tokens: list[int]

    def load(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def result(host: Host, tmp_path_factory: pytest.TempPathFactory) -> HostResult:
    """One start of the host for all comparisons; its VAE is of the real size, the only one it finds out by itself."""
    folder = tmp_path_factory.mktemp("parity")
    write_split(folder, "transformer")
    write_split(folder, "text_encoder")
    vae = to_ldm_state_dict(tiny_vae((128, 256, 512, 512), 2).state_dict())
    write_split(folder, "vae", {name: tensor.half().contiguous() for name, tensor in vae.items()})
    samples = {}
    for i, (latents, embeds, t) in enumerate(zip(*SAMPLES, strict=True)):
        samples |= {f"latents.{i}": latents, f"embeds.{i}": embeds, f"t.{i}": t.clone()}
    save_file(samples, folder / "samples.safetensors")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 24, 40, generator=generator) * 2 - 1
    latents = torch.randn(1, 16, 3, 5, generator=generator)
    save_file({"pixels": pixels, "latents": latents}, folder / "vae_inputs.safetensors")
    facts = {"sizes": HOST_SIZES, "prompts": [*SAME_PROMPTS, *DIFFERENT_PROMPTS]}
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")
    answer = host.run(SCRIPT, folder, host_args=("--cpu", "--fp32-text-enc"))
    return HostResult(folder=folder, num_tokens=answer["num_tokens"])


@pytest.fixture(scope="module")
def text_encoder(result: HostResult) -> TextEncoder:
    path = result.folder / "text_encoder.safetensors"
    return load_text_encoder(path, device=CPU, dtype=torch.float32, text_attention="comfyui")


def test_packed_network_equals_the_hosts_sample_by_sample(result: HostResult) -> None:
    theirs = result.load("velocities")
    with torch.no_grad():
        ours = run_packed(tiny_transformer(), *SAMPLES)
    assert len(ours) == len(theirs)
    for i, velocity in enumerate(ours):
        assert relative_error(velocity, theirs[str(i)]) <= 1e-5


def test_embeddings_equal_the_hosts_clip(result: HostResult, text_encoder: TextEncoder) -> None:
    theirs = result.load("embeds")
    assert describe_differences(text_encoder.tokenizer, SAME_PROMPTS[:-1]) == []
    for i, ours in enumerate(text_encoder.encode(SAME_PROMPTS)):
        assert count_tokens(text_encoder.tokenizer, SAME_PROMPTS[i]) == result.num_tokens[i], SAME_PROMPTS[i]
        # The host does not cut a prompt; attention is causal, so the first tokens are the same.
        assert relative_error(ours, theirs[str(i)][: len(ours)]) <= 1e-4, SAME_PROMPTS[i]
    assert len(theirs[str(len(SAME_PROMPTS) - 1)]) > 256


def test_prompts_reported_as_different_are_different_in_the_host(result: HostResult, text_encoder: TextEncoder) -> None:
    theirs = result.load("embeds")
    for i, ours in enumerate(text_encoder.encode(DIFFERENT_PROMPTS)):
        other = theirs[str(len(SAME_PROMPTS) + i)]
        assert describe_differences(text_encoder.tokenizer, [DIFFERENT_PROMPTS[i]])
        assert len(ours) != len(other) or relative_error(ours, other) > 1e-3, DIFFERENT_PROMPTS[i]


def test_vae_equals_the_hosts(result: HostResult) -> None:
    inputs, theirs = result.load("vae_inputs"), result.load("vae_outputs")
    vae = load_vae(result.folder / "vae.safetensors", device=CPU, dtype=torch.float32)
    assert relative_error(encode_pixels(vae, inputs["pixels"]), theirs["latents"]) <= 1e-5
    assert relative_error(decode_latents(vae, inputs["latents"]), theirs["pixels"]) <= 1e-5
