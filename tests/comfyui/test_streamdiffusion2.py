"""StreamDiffusionV2's rollouts in a real ComfyUI."""


def test_recorded_rollouts_hold_in_comfyui(inside):
    errors = inside("streamdiffusion2", "goldens")
    assert len(errors) == 2 and max(errors.values()) <= 5e-5, errors
