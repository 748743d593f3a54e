"""Thumbnails of workflows for ComfyUI's template browser: what a real run made, in motion, or a card with text.

Cards are for workflows whose weights have to be downloaded. ComfyUI asks for a `.jpg` of the workflow's name; a moving
picture is an animated WebP under that name, which browsers show by what is in the file.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 480, 320  # pixels
MARGIN = 10  # pixels around the clips, and between them
BACKGROUND, TITLE_COLOR, TEXT_COLOR = (23, 32, 43), (244, 247, 250), (109, 134, 160)
JPEG_QUALITY = 88
FRAMES, FRAME_MS, WEBP_QUALITY = 40, 125, 60  # of a moving picture: every second frame of a clip


def frames_of(path: Path) -> list[Image.Image]:
    """All frames of a video, or a picture, in RGB."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return [picture.convert("RGB")]
    from salt.io.video import read_video

    pixels = read_video(path)[0].add(1).mul(127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(frame.numpy()) for frame in pixels.permute(1, 2, 3, 0)]


def moving_picture(files: list[Path], target: Path) -> None:
    """Write an animation of what a run saved, side by side; pictures appear one after another."""
    clips = [frames_of(path) for path in files]
    clips = [clip[:1] * (2 * FRAMES) if len(clip) == 1 else clip for clip in clips]
    stills = all(len(set(map(id, clip))) == 1 for clip in clips)
    width, height = clips[0][0].size
    columns = min(len(clips), 3)
    rows = -(-len(clips) // columns)
    scale = min((WIDTH - MARGIN) / (columns * (width + MARGIN)), (HEIGHT - MARGIN) / (rows * (height + MARGIN)))
    wide, high = round(width * scale), round(height * scale)
    left, top = (WIDTH - columns * (wide + MARGIN)) // 2, (HEIGHT - rows * (high + MARGIN)) // 2
    sheets = []
    for step in range(min(FRAMES, max(len(clip) for clip in clips) // 2)):
        sheet = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
        for i, clip in enumerate(clips):
            if stills and step < 4 * i:
                continue
            frame = clip[min(2 * step, len(clip) - 1)].resize((wide, high), Image.Resampling.LANCZOS)
            sheet.paste(frame, (left + i % columns * (wide + MARGIN), top + i // columns * (high + MARGIN)))
        sheets.append(sheet)
    sheets[0].save(
        target, "WEBP", save_all=True, append_images=sheets[1:], duration=FRAME_MS, loop=0, quality=WEBP_QUALITY,
        method=6,
    )  # fmt: skip


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
    sheet.save(target, "JPEG", quality=JPEG_QUALITY)
