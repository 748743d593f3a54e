"""Load Salt Tiny and Salt Decode in a real ComfyUI, beside core's own nodes and the engine's decoder."""

import pytest

CASES = "tiny"


@pytest.fixture
def needs_a_vae_of_any_width(inside):
    """0.3.64 builds Wan's VAE at its full width only; Load Salt Tiny then says so."""
    message = inside(CASES, "width")
    if message != "nothing was refused":
        assert "needs ComfyUI 0.8 or newer" in message
        pytest.skip(message)


def test_the_embedded_model_works_with_core_s_nodes(needs_a_vae_of_any_width, inside):
    found = inside(CASES, "loaded")
    assert found["spec"] == 3 and found["latents"] <= 1e-4
    assert found["images"] == [33, 64, 64, 3] and found["pixels"] <= 1e-3
    assert found["encoded"] <= 1e-4 and found["round trip"] < 0.5


def test_core_s_nodes_take_the_words_for_a_clip(inside):
    found = inside(CASES, "clip")
    assert found["equal"] == ["plain", "clone", "hooked", "layer", "lora"] and found["empty"] == 0
    assert found["hooks"] == [False, False, True, False, False]
    assert "unknown word 'dragon'" in found["word"]


def test_streaming_decode_equals_core_s_whole_clip(inside):
    found = inside(CASES, "streaming")
    assert len(found) == 5 and max(found.values()) <= 1e-5


def test_streaming_encode_equals_core_s_whole_clip(inside):
    found = inside(CASES, "encoding")
    assert max(found["equal"].values()) <= 1e-4
    assert found["kept"][-1] == found["kept"][2] > 0
    assert found["fork"]


def test_a_stream_goes_on_block_by_block(needs_a_vae_of_any_width, inside):
    assert max(inside(CASES, "stream")) <= 1e-5


def test_memory_grows_neither_with_the_clip_nor_with_the_batch(inside):
    ours = inside(CASES, "flat")["ours"]
    assert max(ours) <= 1.02 * ours[0]


def test_core_is_asked_for_what_a_frame_takes(inside):
    found = inside(CASES, "reservation")
    assert len(set(found["reserved"])) == 1 and found["taken"] <= found["reserved"][0] <= 1.5 * found["taken"]


def test_a_cancelled_decode_stops_at_the_next_frame(inside):
    found = inside(CASES, "cancelled")
    assert found["message"].startswith("InterruptProcessingException") and found["decoded"] == 2
    assert found["equal"] <= 1e-5


def test_taehv_is_core_s_business(inside):
    found = inside(CASES, "taehv")
    if found is None:
        pytest.skip("this ComfyUI loads no TAEHV")
    assert found == {"images": [18, 32, 32, 3], "equal": True, "video": 9}


def test_what_cannot_be_decoded_is_named(inside):
    found = inside(CASES, "refusals")
    assert "vae: found Linear, expected Wan 2.1's VAE" in found["stream"]
    assert "vae: found Linear, expected Wan 2.1's VAE" in found["vae"]
    assert "latents: found shape [1, 4, 8, 8], expected a video latent" in found["image"]
    assert "latents: found shape [1, 48, 1, 4, 4], expected a video latent [B, 16, F, H, W]" in found["channels"]
