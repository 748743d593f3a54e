"""The embedded student through `salt demo`: its clips follow their prompts."""

from salt import cli
from salt.cli.demo import FRAMES, PROMPT
from salt.io.video import read_video
from train.shapes.bench import score_clip
from train.shapes.world import SCENES


def test_the_demo_clip_follows_its_prompt(tmp_path):
    assert cli.main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 0
    pixels = read_video(tmp_path / "demo.mp4")
    assert pixels.shape == (1, 3, FRAMES, 64, 64)
    score = score_clip(pixels[0], PROMPT)
    assert score.color and score.shape and score.direction and score.speed and score.count, score
    assert not score_clip(pixels[0], "a fast red square moving left").color
    assert not score_clip(pixels[0], "a fast yellow square moving right").direction


def test_ten_other_prompts_are_followed_too(tmp_path):
    """Every fifteenth caption. One may fail through another machine's rounding."""
    others = [scene.caption for scene in SCENES[::15] if scene.caption != PROMPT]
    followed = []
    for prompt in others:
        assert cli.main(["demo", "--prompt", prompt, "-o", str(tmp_path / "demo.mp4")]) == 0
        followed.append(score_clip(read_video(tmp_path / "demo.mp4")[0], prompt).passed)
    assert len(others) == 10 and sum(followed) >= 9
