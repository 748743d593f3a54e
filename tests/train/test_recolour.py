"""Video to video with salt-tiny: a moving object gets the prompt's colour, and stays on its path."""

import pytest

from salt.pipeline import SaltPipeline
from salt.schedule import STEP_LISTS
from train.evaluation.recolour import measure, path_distance, sources


def test_sources_differ_from_their_prompts_in_the_colour():
    clips, prompts = sources(4, 0)
    for scene, prompt, pixels, centers in zip(clips.scenes, prompts, clips.pixels, clips.centers, strict=True):
        assert scene.color not in prompt and f"{scene.shape} moving {scene.direction}" in prompt
        assert path_distance(pixels, centers) < 2
        assert path_distance(pixels.flip(-1), centers) > 6 or path_distance(pixels.flip(-2), centers) > 6


@pytest.mark.slow
def test_a_moving_object_is_recoloured_on_its_path():
    pipe = SaltPipeline.from_pretrained("salt-tiny")
    changed, copied = measure(pipe, (300, 150), 0.3, 8, 0, guidance=3), measure(pipe, STEP_LISTS[4], 0.0, 8, 0)
    print(changed, copied, sep="\n")
    assert changed.nfe == 4 and changed.color >= 0.6 and changed.path >= 0.5 and changed.direction >= 0.75
    assert copied.nfe == 0 and copied.color == 0 and copied.path == 1 and copied.pixels < 2
