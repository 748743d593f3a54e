"""What the player of a live session has received and painted in a browser, and where the object moves in it."""

from __future__ import annotations

import base64
from typing import Any

import torch

from train.shapes.bench import score_clip

BLOCK = 12  # pixel frames
WATCHED = 24  # frames that a direction is measured on

# Keeps what the player of this module gets to see, {generation, frame, pixels} in `received`, and what it paints of it,
# {generation, frame} in `seen`: on a busy machine it drops frames.
WATCH = """async (module) => {
  const { Player } = await import(module);
  const { paint, ready } = Player.prototype;
  const copy = new OffscreenCanvas(64, 64).getContext('2d', { willReadFrequently: true });
  window.seen = [];
  window.received = [];
  Player.prototype.ready = function (one, bitmap) {
    const { generation, frame } = one;
    copy.drawImage(bitmap, 0, 0);
    const { data } = copy.getImageData(0, 0, 64, 64);
    received.push({ generation, frame, pixels: btoa(String.fromCharCode(...data)) });
    ready.call(this, one, bitmap);
  };
  Player.prototype.paint = function (one) {
    paint.call(this, one);
    seen.push({ generation: one.generation, frame: one.frame });
  };
}"""
UNTIL = "([g, f]) => seen.some(p => p.generation >= g && p.frame >= f)"


def direction(pictures: list[dict[str, Any]], generation: int, first: int) -> str:
    """Where the object moves in the frames from `first` on that were received."""
    chosen = [p for p in pictures if p["generation"] == generation and first <= p["frame"] < first + WATCHED]
    chosen.sort(key=lambda picture: picture["frame"])  # pictures are decoded side by side
    assert len(chosen) >= WATCHED - 8, "few frames are missing"
    raw = bytearray(b"".join(base64.b64decode(p["pixels"]) for p in chosen))
    rgb_THWC = torch.frombuffer(raw, dtype=torch.uint8).view(len(chosen), 64, 64, 4)[..., :3]
    return score_clip(rgb_THWC.permute(3, 0, 1, 2) / 127.5 - 1, "a slow red circle moving up").found_direction
