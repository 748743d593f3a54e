"""What the player of a live session has painted in a browser, and where the object moves in it."""

from __future__ import annotations

import base64
from typing import Any

import torch

from train.shapes.bench import score_clip

BLOCK = 12  # pixel frames
WATCHED = 24  # frames that a direction is measured on

# Keeps every picture that the player of this module paints: {generation, frame, pixels}.
WATCH = """async (module) => {
  const { Player } = await import(module);
  const paint = Player.prototype.paint;
  window.seen = [];
  Player.prototype.paint = function (frame) {
    paint.call(this, frame);
    const { data } = this.context.getImageData(0, 0, 64, 64);
    seen.push({ generation: frame.generation, frame: frame.frame, pixels: btoa(String.fromCharCode(...data)) });
  };
}"""
UNTIL = "([g, f]) => seen.some(p => p.generation >= g && p.frame >= f)"


def direction(pictures: list[dict[str, Any]], generation: int, first: int) -> str:
    """Where the object moves in the frames from `first` on that were shown."""
    chosen = [p for p in pictures if p["generation"] == generation and first <= p["frame"] < first + WATCHED]
    assert len(chosen) >= WATCHED - 8, "few frames were dropped"
    raw = bytearray(b"".join(base64.b64decode(p["pixels"]) for p in chosen))
    rgb_THWC = torch.frombuffer(raw, dtype=torch.uint8).view(len(chosen), 64, 64, 4)[..., :3]
    return score_clip(rgb_THWC.permute(3, 0, 1, 2) / 127.5 - 1, "a slow red circle moving up").found_direction
