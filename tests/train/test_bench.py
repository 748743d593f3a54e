"""ShapeBench passes rendered clips, and fails every kind of wrong clip in the right verdict."""

import pytest
import torch

from train.shapes.bench import score_clip, score_table, summarize
from train.shapes.world import HELD_OUT_SCENES, SCENES, TRAIN_SCENES, WORDS, Scene, parse_caption, render

SCENE = parse_caption("a fast red circle moving right")


def clip(scene: Scene = SCENE, frames: int = 33, seed: int = 0) -> torch.Tensor:
    return render([scene], frames, torch.Generator().manual_seed(seed)).pixels[0]


def test_the_split_holds_24_captions_out_and_trains_every_word():
    assert len(SCENES) == 144 and len(HELD_OUT_SCENES) == 24 and len(TRAIN_SCENES) == 120
    assert {word for scene in TRAIN_SCENES for word in scene.caption.split()} == set(WORDS)


@pytest.mark.parametrize("part", range(4))
def test_rendered_clips_pass_every_verdict(part):
    wrong = []
    for seed, scene in enumerate(SCENES[part::4]):
        score = score_clip(clip(scene, 17, seed), scene)
        if not (score.passed and score.sharp and score.steady and score.no_drift):
            wrong.append(score)
    assert not wrong


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [
        ("a fast blue circle moving right", "color"),
        ("a fast red square moving right", "shape"),
        ("a fast red triangle moving right", "shape"),
        ("a fast red circle moving left", "direction"),
        ("a fast red circle moving up", "direction"),
        ("a slow red circle moving right", "speed"),
    ],
)
def test_another_scene_fails_in_the_word_that_differs_only(shown, verdict):
    score = score_clip(clip(parse_caption(shown)), SCENE)
    verdicts = {name: getattr(score, name) for name in ("color", "shape", "direction", "speed", "count")}
    assert verdicts == {name: name != verdict for name in verdicts}
    assert not score.passed


def test_a_still_object_fails_direction_and_speed():
    still = clip()[:, :1].expand(-1, 33, -1, -1)
    score = score_clip(still, SCENE)
    assert score.color and not score.direction and not score.speed


def test_two_objects_and_none_fail_the_count():
    one = render([SCENE], 17, torch.Generator().manual_seed(1))
    other = one.pixels.roll(32, dims=3)
    two = torch.where(other.sub(other.mean()).abs() > one.pixels.sub(one.pixels.mean()).abs(), other, one.pixels)
    assert not score_clip(two[0], SCENE).count
    empty = torch.zeros(3, 17, 64, 64)
    score = score_clip(empty, SCENE)
    assert not score.count and not score.color and not score.shape and not score.passed


def test_blur_fails_sharpness():
    blurred = torch.nn.functional.avg_pool2d(clip().transpose(0, 1), 7, stride=1, padding=3, count_include_pad=False)
    assert not score_clip(blurred.transpose(0, 1), SCENE).sharp


def test_flicker_fails_steadiness():
    flickering = clip().clone()
    flickering[:, ::2] = flickering[:, ::2] * 0.7 - 0.3
    assert not score_clip(flickering, SCENE).steady


def test_a_colour_that_changes_midway_drifts():
    drifting = torch.cat(
        [clip(frames=33)[:, :20], clip(parse_caption("a fast blue circle moving right"))[:, 20:]], dim=1
    )
    score = score_clip(drifting, SCENE)
    assert not score.no_drift and score.steady


def test_direction_is_measured_across_many_wraps():
    assert score_clip(clip(frames=241), SCENE).passed


def test_invalid_captions_and_shapes_raise():
    with pytest.raises(ValueError, match="a pink circle"):
        score_clip(clip(), "a pink circle")
    with pytest.raises(ValueError, match=r"\[3, T, 64, 64\]"):
        score_clip(torch.zeros(3, 8, 32, 32), SCENE)


def test_the_table_has_a_line_per_row_and_the_share_of_passes():
    scores = [score_clip(clip(), SCENE), score_clip(clip(), parse_caption("a slow red circle moving right"))]
    assert summarize(scores)["passed"] == 0.5
    assert "| mine | 100 %" in score_table({"mine": scores})
