"""Thumbnails of workflows for ComfyUI's template browser: frames of a real run, or a card with text.

Cards are for workflows whose weights have to be downloaded.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageSequence

WIDTH, HEIGHT = 480, 320  # pixels
SHEET_COLUMNS = 6  # frames in a row of a sheet
BACKGROUND, TITLE_COLOR, TEXT_COLOR = (23, 32, 43), (244, 247, 250), (109, 134, 160)
JPEG_QUALITY = 88


def frames_of(path: Path) -> list[Image.Image]:
    """All frames of a video or animated WebP, in RGB."""
    if path.suffix == ".webp":
        with Image.open(path) as picture:
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
    from salt.io.video import read_video

    pixels = read_video(path)[0].add(1).mul(127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(frame.numpy()) for frame in pixels.permute(1, 2, 3, 0)]


def frame_sheet(files: list[Path], target: Path) -> None:
    """Write a sheet of frames: six columns for a square clip, one for a wide clip, one row per clip for several."""
    clips = [frames_of(path) for path in files]
    width, height = clips[0][0].size
    columns = 4 if len(clips) > 1 else SHEET_COLUMNS if width == height else 1
    lines = max(1, round(HEIGHT / len(clips) / (WIDTH / columns * height / width)))  # per clip, to fill the sheet
    cells = [frame for clip in clips for frame in evenly_spaced(clip, columns * lines)]
    rows = len(cells) // columns
    scale = min((WIDTH - 4) / (columns * width), (HEIGHT - 4) / (rows * height))
    wide, high = round(width * scale), round(height * scale)
    sheet = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    left, top = (WIDTH - columns * wide) // 2, (HEIGHT - rows * high) // 2
    for i, frame in enumerate(cells):
        place = (left + i % columns * wide + 1, top + i // columns * high + 1)
        sheet.paste(frame.resize((wide - 2, high - 2), Image.Resampling.LANCZOS), place)
    sheet.save(target, quality=JPEG_QUALITY)


def evenly_spaced(clip: list[Image.Image], count: int) -> list[Image.Image]:
    """`count` evenly spaced frames of a clip, from its first to its last."""
    return [clip[round(i * (len(clip) - 1) / max(count - 1, 1))] for i in range(count)]


def card(title: str, lines: list[str], target: Path) -> None:
    """Write a card: text above a row of rectangles that symbolise the blocks of a rollout."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((28, 30), title, TITLE_COLOR, ImageFont.load_default(34))
    for row, line in enumerate(lines):
        draw.text((28, 92 + 32 * row), line, TEXT_COLOR, ImageFont.load_default(22))
    for block in range(7):
        x = 28 + block * 61
        draw.rounded_rectangle(
            (x, 248, x + 52, 288), 8, fill=TEXT_COLOR if block < 6 else None, outline=TEXT_COLOR, width=2
        )
    sheet.save(target, quality=JPEG_QUALITY)
