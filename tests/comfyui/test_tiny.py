"""Load Salt Tiny and Salt Decode in a real ComfyUI, beside core's own nodes and the engine's decoder."""

import pytest

CASES = "tiny_cases.py"


@pytest.fixture(autouse=True)
def needs_a_vae_of_any_width(inside):
    """0.3.64 builds Wan's VAE at its full width only; Load Salt Tiny then says so."""
    said = inside(CASES, "width")
    if said != "nothing was refused":
        assert "expected 0.8 or newer; the other nodes work" in said
        pytest.skip(said)


def test_the_embedded_model_works_with_core_s_nodes(inside):
    found = inside(CASES, "loaded")
    assert found["latents"] <= 1e-4 and found["images"] == [33, 64, 64, 3]
    assert found["pixels"] <= 2e-3 and found["round trip"] < 0.5
    assert "unknown word 'dragon'" in found["word"]


def test_streaming_decode_equals_core_s_whole_clip(inside):
    found = inside(CASES, "streaming")
    sizes = found.pop("cache")
    assert len(set(sizes[1:])) == 1, "what the stream carries does not grow"
    assert len(found) == 6 and max(found.values()) <= 1e-4


def test_what_cannot_be_decoded_is_named(inside):
    found = inside(CASES, "refusals")
    assert "vae: found Linear, expected Wan 2.1's VAE" in found["vae"]
    assert "latents: found shape [1, 4, 8, 8], expected a video latent" in found["image"]
