"""The picture that stands for a workflow in ComfyUI's template browser: frames that it really made where it can run
with nothing to download, else a plain card that says what it is."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageSequence

WIDTH, HEIGHT = 480, 320  # pixels
COLUMNS = 6  # frames in a row
DARK, LIGHT, SHADE = (23, 32, 43), (244, 247, 250), (109, 134, 160)
QUALITY = 88


def frames_of(path: Path) -> list[Image.Image]:
    """All frames of a video or of an animated picture, RGB."""
    if path.suffix == ".webp":
        with Image.open(path) as picture:
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
    from salt.io.video import read_video

    pixels = read_video(path)[0].add(1).mul(127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(frame.numpy()) for frame in pixels.permute(1, 2, 3, 0)]


def strip(files: list[Path], target: Path) -> None:
    """A sheet of frames: of one square clip six in a row, of a wide one in a column, of several clips a row each."""
    clips = [frames_of(path) for path in files]
    width, height = clips[0][0].size
    columns = 4 if len(clips) > 1 else COLUMNS if width == height else 1
    lines = max(1, round(HEIGHT / len(clips) / (WIDTH / columns * height / width)))  # of one clip, to fill the sheet
    cells = [frame for clip in clips for frame in evenly(clip, columns * lines)]
    rows = len(cells) // columns
    scale = min((WIDTH - 4) / (columns * width), (HEIGHT - 4) / (rows * height))
    wide, high = round(width * scale), round(height * scale)
    sheet = Image.new("RGB", (WIDTH, HEIGHT), DARK)
    left, top = (WIDTH - columns * wide) // 2, (HEIGHT - rows * high) // 2
    for i, frame in enumerate(cells):
        place = (left + i % columns * wide + 1, top + i // columns * high + 1)
        sheet.paste(frame.resize((wide - 2, high - 2), Image.Resampling.LANCZOS), place)
    sheet.save(target, quality=QUALITY)


def evenly(clip: list[Image.Image], count: int) -> list[Image.Image]:
    """So many frames of a clip, from its first to its last."""
    return [clip[round(i * (len(clip) - 1) / max(count - 1, 1))] for i in range(count)]


def card(title: str, lines: list[str], target: Path) -> None:
    """Words on a plain ground, above blocks that stand for a clip made one after the other. No frames, made or not."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), DARK)
    draw = ImageDraw.Draw(sheet)
    draw.text((28, 30), title, LIGHT, ImageFont.load_default(34))
    for row, line in enumerate(lines):
        draw.text((28, 92 + 32 * row), line, SHADE, ImageFont.load_default(22))
    for block in range(7):
        x = 28 + block * 61
        draw.rounded_rectangle((x, 248, x + 52, 288), 8, fill=SHADE if block < 6 else None, outline=SHADE, width=2)
    sheet.save(target, quality=QUALITY)
