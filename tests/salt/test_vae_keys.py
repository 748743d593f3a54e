"""The VAE key conversion, compared with diffusers' own converter in the opposite direction."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file

from salt.checkpoints import CheckpointError
from salt.checkpoints.vae_keys import vae_to_wan
from salt.spec import TINY_FOLDER

TINY = TINY_FOLDER / "vae" / "diffusion_pytorch_model.safetensors"


def numbered_state() -> dict[str, torch.Tensor]:
    """State dict of a Wan 2.1 VAE of base width 4, each weight filled with its own number."""
    state = AutoencoderKLWan(base_dim=4).state_dict()
    return {name: torch.full_like(tensor, i + 1) for i, (name, tensor) in enumerate(state.items())}


@pytest.mark.parametrize("state", [numbered_state(), load_file(TINY)], ids=["Wan 2.1", "salt-tiny"])
def test_round_trip_keeps_every_weight(state):
    wan = vae_to_wan(state, "vae")
    back = convert_wan_vae_to_diffusers(dict(wan))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_wan_names():
    wan = vae_to_wan(numbered_state(), "vae")
    assert wan["decoder.head.0.gamma"].shape == (4, 1, 1, 1)
    expected = {"conv1.weight", "conv2.bias", "encoder.middle.1.to_qkv.weight", "decoder.upsamples.3.time_conv.weight"}
    assert expected <= wan.keys() and len(wan) == 194


def test_unknown_weights_are_named_with_their_file():
    with pytest.raises(CheckpointError, match=r"other\.safetensors: found .*decoder\.mid\.block_1\.conv1\.weight"):
        vae_to_wan({"decoder.mid.block_1.conv1.weight": torch.zeros(1)}, "other.safetensors")
    doubled = {"quant_conv.weight": torch.zeros(1), "encoder.up_blocks.0.resnets.9.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="other"):
        vae_to_wan({**doubled, "decoder.up_blocks.5.resnets.x.conv1.weight": torch.zeros(1)}, "other")
