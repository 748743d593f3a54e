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
    from salt.video import read_video

    pixels = read_video(path)[0].add(1).mul(127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(frame.numpy()) for frame in pixels.permute(1, 2, 3, 0)]


def strip(files: list[Path], target: Path) -> None:
    """A row of frames of each file, from its first to its last."""
    rows = [frames_of(path) for path in files]
    columns = COLUMNS if len(rows) == 1 and rows[0][0].width == rows[0][0].height else 4 if len(rows) > 1 else 1
    shown = [[row[round(i * (len(row) - 1) / max(columns * lines - 1, 1))] for i in range(columns * lines)]
             for row in rows for lines in [_lines(len(rows), row[0], columns)]]  # fmt: skip
    cells = [(row[i : i + columns]) for row in shown for i in range(0, len(row), columns)]
    scale = min((WIDTH - 4) / (columns * cells[0][0].width), (HEIGHT - 4) / (len(cells) * cells[0][0].height))
    wide, high = round(cells[0][0].width * scale), round(cells[0][0].height * scale)
    sheet = Image.new("RGB", (WIDTH, HEIGHT), DARK)
    left, top = (WIDTH - columns * wide) // 2, (HEIGHT - len(cells) * high) // 2
    for y, line in enumerate(cells):
        for x, frame in enumerate(line):
            place = (left + x * wide + 1, top + y * high + 1)
            sheet.paste(frame.resize((wide - 2, high - 2), Image.Resampling.LANCZOS), place)
    sheet.save(target, quality=QUALITY)


def _lines(clips: int, frame: Image.Image, columns: int) -> int:
    """How many lines one clip's frames take, so that the sheet is filled."""
    return max(1, round(HEIGHT / clips / (WIDTH / columns * frame.height / frame.width)))


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
