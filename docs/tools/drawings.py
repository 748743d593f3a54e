"""Write the drawings of docs/concepts/*.md and docs/architecture.md as SVG: `python -m docs.tools.drawings`.

What a memory keeps and at which positions is computed by the engine's own `MemoryPolicy`, not drawn by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from salt.memory import MemoryPolicy

DRAWINGS = Path(__file__).resolve().parents[1] / "images" / "concepts"
BLOCK = 3  # latent frames

INK, MUTED, LINE, PAPER = "#1f2933", "#66727f", "#c4ccd4", "#ffffff"
NOISY, CLEAN, SINK, EMPTY, SECOND = "#f0a04b", "#7fb2e5", "#6bbf8a", "#eef1f4", "#c79be0"


class Drawing:
    """An SVG on a white card, so that it reads on light and dark pages."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, fill: str, stroke: str = LINE, radius: float = 2) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self, x: float, y: float, text: str, size: int = 12, anchor: str = "start", fill: str = INK, weight: str = ""
    ) -> None:
        bold = f' font-weight="{weight}"' if weight else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{bold}>'
            f"{escape(text)}</text>"
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{INK}" stroke-width="1.3"{dash} '
            'marker-end="url(#head)"/>'
        )

    def box(self, x: float, y: float, w: float, h: float, label: str, fill: str = EMPTY, size: int = 12) -> None:
        """A box with one or more centred lines of text (split at newlines)."""
        self.rect(x, y, w, h, fill, radius=4)
        lines = label.split("\n")
        for i, line in enumerate(lines):
            self.text(
                x + w / 2, y + h / 2 + size * 0.36 + (i - (len(lines) - 1) / 2) * (size + 4), line, size, "middle"
            )

    def legend(self, x: float, y: float, entries: Iterable[tuple[str, str]]) -> None:
        for fill, label in entries:
            self.rect(x, y - 10, 12, 12, fill)
            self.text(x + 17, y, label, 11, fill=MUTED)
            x += 35 + 6.2 * len(label)

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="sans-serif" role="img">\n'
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{PAPER}"/>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def blocks() -> Drawing:
    """Blocks in time: denoising steps, context pass, and decoding beside the next block."""
    d = Drawing(800, 218, "A rollout makes one block after the other and decodes beside it")
    d.text(20, 26, "4 evaluations per block; every block is 3 latent frames = 12 video frames", 13, weight="bold")
    d.text(20, 70, "transformer", 12)
    d.text(20, 130, "decoder", 12)
    d.text(20, 180, "you see", 12)
    x, step = 110, 34
    for block in range(4):
        left = x + block * 5 * step
        for i in range(4):
            d.rect(left + i * step, 50, step - 3, 32, NOISY)
            d.text(left + i * step + step / 2 - 1, 70, str(i + 1), 11, "middle")
        d.rect(left + 4 * step, 50, step - 3, 32, CLEAN)
        d.text(left + 4 * step + step / 2 - 1, 70, "C", 11, "middle")
        d.text(left + 2 * step, 46, f"block {block}", 11, "middle", MUTED)
        done = left + 4 * step
        if block < 3:
            d.arrow(done - 3, 83, done + 6, 108)
            d.box(done + 4, 110, 3 * step, 30, f"decode block {block}", EMPTY, 11)
            frames = "video frames 0-8" if block == 0 else f"video frames {block * 12 - 3}-{block * 12 + 8}"
            d.arrow(done + 4 + 3 * step - 12, 141, done + 4 + 3 * step + 4, 160)
            d.text(done + 2 * step - 14, 178, frames, 11, "start", MUTED)
    d.legend(110, 206, [(NOISY, "denoising step (reads the KV cache)"), (CLEAN, "context pass (writes the KV cache)")])
    return d


def one_write() -> Drawing:
    """The one-write rule, and the fused pass."""
    d = Drawing(800, 330, "Denoising steps read the KV cache; only the context pass writes it")
    d.text(20, 28, "One block with 4 evaluations", 13, weight="bold")
    d.text(20, 64, "KV cache", 12)
    for i in range(6):
        d.rect(110 + i * 24, 48, 22, 24, CLEAN)
    for i in range(9):
        d.rect(556 + i * 24, 48, 22, 24, CLEAN)
    d.text(182, 42, "frames 0-5", 11, "middle", MUTED)
    d.text(664, 42, "frames 0-8", 11, "middle", MUTED)
    for i, sigma in enumerate(("1.00", "0.94", "0.83", "0.63")):
        left = 110 + i * 100
        d.box(left, 110, 88, 44, f"step {i + 1}\nsigma {sigma}", NOISY, 11)
        d.arrow(182 + i * 12, 74, left + 44, 108, dashed=True)
        if i < 3:
            d.arrow(left + 89, 132, left + 99, 132)
    d.arrow(499, 132, 520, 132)
    d.box(522, 110, 110, 44, "context pass\nclean, sigma 0", CLEAN, 11)
    d.arrow(600, 108, 740, 75)
    d.text(660, 104, "the one write", 11, fill=MUTED)
    d.text(110, 176, "noisy block 2 (frames 6-8); dashed: reads", 11, fill=MUTED)
    d.text(20, 216, "Fused: the context pass of block 2 and step 1 of block 3 in one forward", 13, weight="bold")
    d.text(20, 262, "queries", 12)
    for i in range(3):
        d.rect(110 + i * 24, 246, 22, 24, CLEAN)
        d.rect(190 + i * 24, 246, 22, 24, NOISY)
    d.text(145, 240, "clean 6-8", 11, "middle", MUTED)
    d.text(225, 240, "noisy 9-11", 11, "middle", MUTED)
    d.text(300, 252, "clean frames (timestep 0) attend to: cache + themselves", 12)
    d.text(300, 272, "noisy frames (timestep 1000) attend to: cache + clean frames + themselves", 12)
    same = "The numbers are the same; a block takes as many forwards as it has evaluations, instead of one more."
    d.text(20, 306, same, 12, fill=MUTED)
    return d


def history(policy: MemoryPolicy, count: int) -> list[tuple[tuple[int, ...], range, dict[int, int]]]:
    """Of `count` blocks: the frames that each reads from memory, its own frames, and all their temporal positions."""
    rows, held = [], ()
    written: dict[int, int] = {}
    for index in range(count):
        block = range(index * BLOCK, (index + 1) * BLOCK)
        kept = policy.kept(held, BLOCK, 0)
        own = dict(zip(block, policy.block_positions(block.start, BLOCK, len(kept)), strict=True))
        written |= own
        read = dict(zip(kept, range(len(kept)), strict=True)) if policy.relative else {f: written[f] for f in kept}
        rows.append((kept, block, read | own))
        held = kept + tuple(block)
    return rows


POLICIES = {
    "full": (MemoryPolicy(), "full: everything is kept, positions are the frame numbers"),
    "window": (MemoryPolicy("window", 12), "window:12: the newest 12 frames, the current block counted"),
    "sink": (MemoryPolicy("sink", 12, 3), "sink:3,window:12: the first 3 frames and the newest 9"),
    "relative": (MemoryPolicy("relative", 12, 3), "relative:3,window:12: the same frames, at positions 0 to 11"),
    "cyclic": (MemoryPolicy("cyclic", 12), "cyclic:12: as window; positions start over every 21 frames"),
    "blended": (
        MemoryPolicy("blended", 12, 3),
        "blended:3,window:12: as relative; evicted frames are mixed into the sink",
    ),
}


def policy_drawing(name: str, count: int = 9) -> Drawing:
    """One row per block: which frames it reads, and the temporal position of every frame (the number in the cell)."""
    policy, title = POLICIES[name]
    cell, left, top = 24, 74, 62
    d = Drawing(left + count * BLOCK * cell + 20, top + count * cell + 44, title)
    d.text(20, 26, title, 13, weight="bold")
    for frame in range(0, count * BLOCK, BLOCK):
        d.text(left + frame * cell + cell / 2, top - 8, str(frame), 10, "middle", MUTED)
    d.text(20, top - 8, "frame", 10, fill=MUTED)
    for row, (kept, block, positions) in enumerate(history(policy, count)):
        y = top + row * cell
        d.text(20, y + 16, f"block {row}", 11)
        for frame in range(block.stop):
            x, here = left + frame * cell, frame in kept or frame in block
            sink = frame < policy.sink
            fill = NOISY if frame in block else (SINK if sink else CLEAN) if here else EMPTY
            d.rect(x, y, cell - 2, cell - 2, fill)
            if here:
                d.text(x + cell / 2 - 1, y + 15, str(positions[frame]), 10, "middle")
    entries = [(NOISY, "being generated"), (CLEAN, "read from the cache")]
    if policy.sink:
        absorbed = ", mixed with what is evicted" if policy.kind == "blended" else ""
        entries.append((SINK, "sink" + absorbed))
    if policy.kind != "full":
        entries.append((EMPTY, "evicted"))
    d.legend(left, top + count * cell + 24, entries)
    return d


def prompt_changes() -> Drawing:
    """What keep, recache and cut do to a memory of 12 frames (sink 3) when prompt B begins at frame 18."""
    cell, left = 24, 110
    d = Drawing(800, 312, "What a prompt change does to the KV cache")
    d.text(20, 26, "Prompt B begins with block 6 (frames 18-20); sink 3, window 12", 13, weight="bold")
    kept = MemoryPolicy("sink", 12, 3).kept((0, 1, 2, *range(9, 18)), BLOCK, 0)
    recached = MemoryPolicy("sink", 12, 3).kept(tuple(range(6, 18)), BLOCK, 6)
    about = {
        "keep": "The cache stays as prompt A wrote it; the new words act slowly.",
        "recache": "The last 12 clean frames go through the model again under prompt B, in one forward; "
        "the first of them are the new sink.",
        "cut": "The cache is emptied: a new scene. Its first frames become the sink.",
    }
    frames = {"keep": kept, "recache": recached, "cut": ()}
    for row, (name, read) in enumerate(frames.items()):
        y = 62 + row * 78
        d.text(20, y + 16, name, 13, weight="bold")
        for frame in range(21):
            x = left + frame * cell
            here = frame in read
            fill = NOISY if frame >= 18 else (SECOND if name == "recache" else CLEAN) if here else EMPTY
            d.rect(x, y, cell - 2, cell - 2, fill)
            d.text(x + cell / 2 - 1, y + 15, str(frame), 10, "middle", INK if here or frame >= 18 else MUTED)
        d.text(left, y + 40, about[name], 11, fill=MUTED)
    entries = [(NOISY, "being generated under B"), (CLEAN, "written under A"), (SECOND, "written under B")]
    d.legend(left, 296, [*entries, (EMPTY, "not read")])
    return d


def extension() -> Drawing:
    """Starting from an image or going on from a finished clip: clean latents go through context passes first."""
    d = Drawing(800, 150, "Clean latents go through context passes, then the rollout goes on behind them")
    cells, cell = 21, 24
    d.text(20, 28, "Start from an image, a video or given latents", 13, weight="bold")
    for frame in range(cells):
        fill = CLEAN if frame < 6 else NOISY if frame < 9 else EMPTY
        d.rect(110 + frame * cell, 50, cell - 2, cell - 2, fill)
        d.text(110 + frame * cell + 11, 65, str(frame), 10, "middle")
    notes = (
        "Given clean latents are encoded by context passes, one block at a time; generation continues behind them.",
        "A saved cache skips that: it already holds the keys and values, and the next block follows at its next frame.",
    )
    for i, note in enumerate(notes):
        d.text(110, 96 + 18 * i, note, 11, fill=MUTED)
    d.legend(110, 138, [(CLEAN, "given, context pass"), (NOISY, "first generated block"), (EMPTY, "later blocks")])
    return d


def architecture() -> Drawing:
    """Data flow of the engine, and its two hosts."""
    d = Drawing(800, 330, "Data flow: prompt, rollout, decoder, video; the hosts and the engine")
    d.text(20, 26, "Data flow in the engine (salt/)", 13, weight="bold")
    row = [
        ("prompt", 20, 80),
        ("conditioning\ntext encoder", 126, 116),
        ("rollout\nschedule, noise", 268, 130),
        ("latents\none block", 424, 96),
        ("streaming\ndecoder", 546, 100),
        ("video file\npreview", 672, 108),
    ]
    for i, (label, x, w) in enumerate(row):
        d.box(x, 48, w, 52, label, NOISY if "rollout" in label else EMPTY)
        if i + 1 < len(row):
            d.arrow(x + w + 1, 74, row[i + 1][1] - 2, 74)
    d.box(228, 140, 100, 50, "transformer\n(model call)")
    d.box(344, 140, 100, 50, "KV cache\n+ policy", CLEAN)
    d.arrow(310, 101, 288, 138)
    d.arrow(356, 101, 386, 138)
    d.arrow(343, 165, 330, 165)
    d.text(460, 170, "a generator of finished blocks: a preview, a decoder,", 11, fill=MUTED)
    d.text(460, 186, "a progress bar and a training loop only consume it", 11, fill=MUTED)
    d.text(20, 232, "Who imports whom", 13, weight="bold")
    d.box(20, 252, 220, 52, "nodes/\nComfyUI nodes and adapter")
    d.box(290, 252, 220, 52, "salt/\nengine: imports neither host", NOISY)
    d.box(560, 252, 220, 52, "train/\nlosses, trainer, recipes")
    d.arrow(241, 278, 288, 278)
    d.arrow(559, 278, 512, 278)
    return d


def drawings() -> dict[str, str]:
    """File name -> SVG text of every drawing."""
    found = {f"policy_{name}": policy_drawing(name) for name in POLICIES}
    for draw in (blocks, one_write, prompt_changes, extension, architecture):
        found[draw.__name__] = draw()
    return {f"{name}.svg": drawing.svg() for name, drawing in found.items()}


if __name__ == "__main__":
    DRAWINGS.mkdir(parents=True, exist_ok=True)
    for name, text in drawings().items():
        (DRAWINGS / name).write_text(text)
        print(DRAWINGS / name)
