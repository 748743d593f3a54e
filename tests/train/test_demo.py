"""The embedded student, through the command a newcomer types: its clip shows what the prompt says."""

from salt import cli
from salt.cli.demo import FRAMES, PROMPT
from salt.video import read_video
from train.shapes.bench import score_clip


def test_the_demo_clip_follows_its_prompt(tmp_path):
    assert cli.main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 0
    pixels = read_video(tmp_path / "demo.mp4")
    assert pixels.shape == (1, 3, FRAMES, 64, 64)
    score = score_clip(pixels[0], PROMPT)
    assert score.color and score.shape and score.direction and score.speed and score.count, score
    assert not score_clip(pixels[0], "a fast red square moving left").color
    assert not score_clip(pixels[0], "a fast yellow square moving right").direction
