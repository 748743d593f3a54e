"""Krea realtime's memory and steps in a real ComfyUI."""

CASE = "krea"


def test_recorded_rollouts_hold_in_comfyui(inside):
    errors = inside(CASE, "goldens")
    assert len(errors) == 6 and max(errors.values()) <= 5e-5, errors


def test_nodes_equal_the_pipeline_and_say_what_they_need(inside):
    found = inside(CASE, "nodes")
    assert found.pop("still") == 6, "an image is a still of as many frames as the memory is rebuilt from"
    assert "vae must be connected: the memory rebuild:3 decodes frames" in found.pop("no vae")
    assert "latents must be connected: a memory that was rewound" in found.pop("no clip")
    assert "window: found 4, expected a multiple of the block of 3" in found.pop("blocks")
    assert len(found) == 4 and max(found.values()) <= 1e-4, found


def test_a_memory_that_needs_a_vae_is_refused_before_anything_runs(inside):
    found = inside(CASE, "queued")
    needs = "vae must be connected: the memory rebuild:3 decodes frames and encodes them again"
    for graph in ("no vae", "extended"):
        valid, _, *details = found[graph]
        assert not valid and any(needs in text for text in details), found[graph]
    assert found["vae"][0] and found["kept"][0], found
    assert "policy rebuild:3 decodes frames" in found["sampler"] and "use Salt Rollout" in found["sampler"]
