"""Drift: window bounds, measures of synthetic frames, and a known drift that is measured."""

import json

import pytest
import torch

from salt.memory import MemoryPolicy
from salt.pipeline import SaltPipeline
from salt.spec import StudentSpec
from train.evaluation.drift import (
    cut_windows,
    drift_rows,
    drift_table,
    measure_drift,
    measure_frames,
    summarize_drift,
)
from train.experiments.tiny.teacher import new_transformer
from train.experiments.tiny.vae import new_vae
from train.shapes.world import SCENES, render


@pytest.mark.parametrize("pieces", [[9, 12, 12, 12], [45], [1] * 45])
def test_windows_do_not_depend_on_the_pieces(pieces):
    clip = torch.arange(45.0).view(1, 1, 45, 1, 1).expand(2, 3, 45, 4, 4)  # 12 latent frames
    cut = list(cut_windows(clip.split(pieces, dim=2), 12, window=5))
    assert [(first, last, part.shape[2]) for first, last, part in cut] == [(0, 5, 17), (5, 10, 20), (10, 12, 8)]
    assert torch.equal(torch.cat([part for _, _, part in cut], dim=2), clip)


def test_a_clip_that_ends_early_raises():
    with pytest.raises(ValueError, match="frames 5 to 10: found 3 pixel frames, expected 20"):
        list(cut_windows([torch.zeros(1, 3, 20, 4, 4)], 10, window=5))


def test_measures_of_synthetic_frames():
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1).expand(3, 2, 8, 8) * 2 - 1
    flat = measure_frames(red)
    assert flat == pytest.approx(dict(luma=0.2126, contrast=0, saturation=1, sharpness=0, motion=0), abs=1e-6)
    board = (torch.arange(8).view(8, 1) + torch.arange(8)) % 2  # checkerboard
    turning = torch.stack([board, 1 - board, board]).float().expand(3, 3, 8, 8) * 2 - 1
    found = measure_frames(turning)
    assert found == pytest.approx(dict(luma=0.5, contrast=0.5, saturation=0, sharpness=4, motion=1), abs=1e-6)


class FadingPipeline:
    """A pipeline stand-in: rendered clips that lose a tenth of their brightness in every block."""

    default_size, temporal_scale = (64, 64), 4

    def stream(self, prompts, num_frames, seed, **_):
        scenes = [s for p in prompts for s in SCENES if s.caption == p]
        pixels = render(scenes, num_frames, torch.Generator().manual_seed(0)).pixels
        for i, part in enumerate(pixels.split([9] + [12] * ((num_frames - 9) // 12), dim=2)):
            yield type("Chunk", (), {"pixels": (part + 1) * 0.9**i - 1})


def test_a_known_drift_is_measured_and_written():
    windows = measure_drift(FadingPipeline(), [s.caption for s in SCENES[:2]], 18, window=6)  # type: ignore[arg-type]
    rows = summarize_drift(windows)
    assert [(row["first"], row["last"], row["clips"]) for row in rows] == [(0, 6, 2), (6, 12, 2), (12, 18, 2)]
    ratios = [row["relative"]["luma"] for row in rows]
    # Blocks 0 and 1 make the first window (9 and 12 frames), 2 and 3 the next.
    first = (9 + 12 * 0.9) / 21
    assert ratios == pytest.approx([1, (0.81 + 0.729) / 2 / first, 0.81 * (0.81 + 0.729) / 2 / first], rel=0.02)
    assert all(row["shapes"]["color"] == row["shapes"]["count"] == 1 for row in rows)
    table = drift_table({"painted": rows}).splitlines()
    assert table[2].startswith("| painted | 0-5 | 1.000 |") and len(table) == 5
    written = json.loads(json.dumps(drift_rows(windows)))
    assert len(written) == 6 and written[0]["shapes"]["count"] is True and written[0]["luma"] > written[4]["luma"]


@pytest.mark.parametrize("per_block", [0, 3])
def test_a_real_pipeline_is_measured_while_streaming(per_block):
    spec = StudentSpec(per_block, (1000, 500), policy=MemoryPolicy())
    words = dict(dim=4096, max_length=16)
    pipe = SaltPipeline(new_transformer(0), new_vae(), student=spec, words=words, default_size=(64, 64))
    prompts = [SCENES[0].caption, "a red circle moving"]
    windows = measure_drift(pipe, prompts, 6, window=3)
    assert [(w.prompt, w.first) for w in windows] == [(p, f) for f in (0, 3) for p in prompts]
    assert all(w.score is None and torch.tensor(list(w.measures.values())).isfinite().all() for w in windows)
    alone = measure_drift(pipe, prompts[1:], 6, window=3)
    assert alone[1].measures == pytest.approx(windows[3].measures, rel=1e-3), "noise depends on the prompt alone"
    with pytest.raises(ValueError, match="found 1, expected 2"):
        measure_drift(pipe, prompts, 1)
