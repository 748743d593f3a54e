"""Tables, plots and sample pictures of the study's recorded scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from salt.checkpoints import load_student, read_checkpoint
from salt.models.word_embedder import WordEmbedder
from salt.semigroup_defect import OPERATORS
from salt.spec import StudentSpec
from train.evaluation.sampling import decode_latents, load_vae, student_clips
from train.evaluation.shapebench import CLIP_FRAMES, PROMPTS
from train.experiments.ablation.arms import ARMS, OTHER_START, arms_named
from train.experiments.ablation.paired_differences import Difference, over_seeds, verdict
from train.experiments.ablation.scores import SINK_WINDOW
from train.monitoring.plots import pyplot_for_files
from train.sample_grid import grid

SCORES = "study.json"
COLUMNS = ("passed", "semantics", "quality", "motion", "drift")
# Pairs of arms that differ by one part of Salt.
PARTS = {
    "mixed steps": (("mixed", "fixed"),),
    "alignment": (
        ("mixed-align-paper", "mixed"), ("mixed-align", "mixed"), ("all-paper", "mixed-sc"), ("all", "mixed-sc"),
    ),
    "SC": (("mixed-sc", "mixed"), ("all-paper", "mixed-align-paper"), ("all", "mixed-align")),
}  # fmt: skip
PICTURE_PROMPTS = (0, 30, 14, 44)  # two held out, two not
PICTURE_SEED = 6000

Row = dict[str, Any]


def finished(out: Path) -> dict[str, list[Row]]:
    """Recorded scores of every arm that has any, by arm, seeds in order."""
    found = {a.name: [json.loads(p.read_text()) for p in sorted(out.glob(f"{a.name}/seed-*/{SCORES}"))] for a in ARMS}
    return {name: rows for name, rows in found.items() if rows}


def table(out: Path, short: bool = False) -> str:
    """Markdown: a line per arm and setting with means and half-ranges over seeds, then the scatter of a single seed.

    short: only the settings of `short_settings`.
    """
    arms = finished(out)
    shown = {name: short_settings(rows[0]) if short else list(rows[0]["scores"]) for name, rows in arms.items()}
    lines = [
        f"| arm | NFE / memory / latent frames | {' | '.join(COLUMNS)} | defect, euler | defect, sampler | seeds | "
        "recipe | minutes |",
        "|" + "---|" * (len(COLUMNS) + 7),
    ]
    for name, rows in arms.items():
        about = next(a.about for a in ARMS if a.name == name)
        defects = [spread([r["defect"][o] for r in rows], 4) for o in OPERATORS]
        minutes = f"{fmean(r['minutes'] for r in rows):.1f}"
        for setting in shown[name]:
            values = [spread(column(rows, setting, c), 2) for c in COLUMNS]
            lines.append(
                f"| {about} | {setting} | {' | '.join(values)} | {' | '.join(defects)} | {len(rows)} | "
                f"{rows[0]['recipe']} | {minutes} |"
            )
    defects = [scatter([[r["defect"][o] for r in rows] for rows in arms.values()], 4) for o in OPERATORS]
    for setting in dict.fromkeys(s for settings in shown.values() for s in settings):
        having = [rows for name, rows in arms.items() if setting in shown[name]]
        values = [scatter([column(rows, setting, c) for rows in having], 2) for c in COLUMNS]
        lines.append(f"| *scatter of one seed* | {setting} | {' | '.join([*values, *defects])} | | | |")
    return "\n".join(lines)


def overview(out: Path) -> str:
    """Markdown, one line per arm: percentage of clips passed at 4 and 2 NFE (mean over seeds) and the Euler defect.

    In brackets the mean difference to the arm's control in points, its standard error over seeds where there are
    several, and how many. The last line counts the differences.
    """
    arms = finished(out)
    lines = ["| arm | control | seeds | passed, 4 NFE | passed, 2 NFE | Euler defect |", "|" + "---|" * 6]
    found: list[tuple[str, Difference]] = []
    for name, rows in arms.items():
        arm = arms_named([name])[0]
        cells = []
        for setting in short_settings(rows[0]):
            more = differences(arms, name, arm.control, setting)
            cells.append(f"{100 * fmean(column(rows, setting, 'passed')):.0f} %{in_brackets(more, len(rows))}")
            if more:
                found.append((f"`{name}` at {setting.split(' / ')[0]} NFE", over_seeds(list(more.values()))))
        defect = fmean(row["defect"]["euler"] for row in rows)
        control = f"`{arm.control}`" if arm.control else ""
        lines.append(f"| `{name}`: {arm.about} | {control} | {len(rows)} | {' | '.join(cells)} | {defect:.4f} |")
    return "\n".join([*lines, "", verdict(found)])


def in_brackets(more: dict[int, float], seeds: int) -> str:
    """` (+3 ± 1)`: the mean difference and its error; how many of the arm's seeds it is of, where not of all."""
    if not more:
        return ""
    of = f", {len(more)} of {seeds} seeds" if len(more) < seeds else ""
    return f" ({over_seeds(list(more.values())).text(0)}{of})"


def differences(arms: dict[str, list[Row]], name: str, control: str, setting: str) -> dict[int, float]:
    """Percentage points passed more than the control, by seed: of seeds with one initial student, in one setting."""
    base = {row["seed"]: row for row in arms.get(control, []) if (control, row["seed"]) not in OTHER_START}
    return {
        row["seed"]: 100 * (row["scores"][setting]["passed"] - base[row["seed"]]["scores"][setting]["passed"])
        for row in arms.get(name, [])
        if row["seed"] in base and (name, row["seed"]) not in OTHER_START
        if setting in row["scores"] and setting in base[row["seed"]]["scores"]
    }


def paired(out: Path) -> str:
    """Markdown: by how many points more (or fewer) clips pass than the control's of the same seed, seed by seed.

    Arms of one seed share their noise, which moves all of them alike.
    """
    arms, rows = finished(out), []
    for name, recorded in arms.items():
        control = arms_named([name])[0].control
        for setting in short_settings(recorded[0]):
            more = differences(arms, name, control, setting)
            rows.append((f"`{name}` less `{control}` | {setting.split(' / ')[0]}", more))
    return seed_table("passed, arm less control | NFE", rows)


def parts(out: Path) -> str:
    """Markdown: a part of Salt over all pairs of arms that differ by it alone, seed by seed, means over the pairs."""
    arms, rows = finished(out), []
    for part, pairs in PARTS.items():
        for nfe in (4, 2):
            setting = f"{nfe} / full / {CLIP_FRAMES}"
            each = [differences(arms, own, control, setting) for own, control in pairs]
            seeds = sorted(set.intersection(*(set(e) for e in each)))
            rows.append((f"{part} | {len(pairs)} | {nfe}", {s: fmean(e[s] for e in each) for s in seeds}))
    return seed_table("passed, with less without | pairs | NFE", rows)


def seed_table(heading: str, rows: Sequence[tuple[str, dict[int, float]]]) -> str:
    """Markdown: rows of points by seed, and the mean with its error over seeds; rows without any are left out."""
    seeds = sorted({seed for _, more in rows for seed in more})
    lines = [f"| {heading} | {' | '.join(f'seed {s}' for s in seeds)} | mean |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for name, more in rows:
        if more:
            cells = [f"{round(more[s]):+d}" if s in more else "-" for s in seeds]
            lines.append(f"| {name} | {' | '.join(cells)} | {over_seeds(list(more.values())).text(1)} |")
    return "\n".join(lines)


def column(rows: Sequence[Row], setting: str, name: str) -> list[float]:
    """One score of every seed that has it: arms scored before a column existed lack it."""
    return [r["scores"][setting][name] for r in rows if name in r["scores"][setting]]


def scatter(arms: Sequence[Sequence[float]], digits: int) -> str:
    """The standard deviation of one seed about its arm's mean, pooled over `arms`: two or three seeds of one arm are
    too few to estimate it, those of all arms are enough. "-" where no arm has two seeds.
    """
    freedom = sum(len(values) - 1 for values in arms if values)
    if not freedom:
        return "-"
    squares = sum((v - fmean(values)) ** 2 for values in arms if values for v in values)
    return f"{(squares / freedom) ** 0.5:.{digits}f}"


def short_settings(row: Row) -> list[str]:
    """The setting of each step count with clips of CLIP_FRAMES, full memory, or relative where trained with that."""
    return [s for s in row["scores"] if s.endswith(f" / {CLIP_FRAMES}") and SINK_WINDOW not in s]


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, and half the distance between the extremes where there are several; "-" of none."""
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{fmean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def plot(out: Path, path: Path) -> None:
    """One panel per score, a line per arm, a dot per seed, 4 and 2 NFE beside each other; short clips, full memory."""
    pyplot = pyplot_for_files()
    arms = finished(out)
    panels = [*COLUMNS, *(f"defect, {o}" for o in OPERATORS)]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.0 * len(panels), 1.2 + 0.34 * len(arms)), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        for at, rows in enumerate(arms.values()):
            for nfe, color, shift in ((4, "tab:blue", -0.12), (2, "tab:orange", 0.12)):
                values = _values(rows, panel, nfe)
                if not values:
                    continue
                axis.plot(values, [at + shift] * len(values), "o", color=color, markersize=4, alpha=0.8)
                axis.plot([fmean(values)], [at + shift], "|", color=color, markersize=11)
        axis.set_title(panel, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(arms)), list(arms))
    axes[0].invert_yaxis()
    figure.suptitle("blue: 4 NFE, orange: 2 NFE; a dot per seed, a bar at their mean", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _values(rows: Sequence[Row], panel: str, nfe: int) -> list[float]:
    if panel.startswith("defect, "):
        return [row["defect"][panel.removeprefix("defect, ")] for row in rows]
    return column(rows, next(s for s in short_settings(rows[0]) if s.startswith(f"{nfe} / ")), panel)


@torch.no_grad()
def picture(students: dict[str, Path], vae: Path, path: Path, nfe: int = 2) -> None:
    """A JPEG: a row per student, by name, a column per prompt; first, middle and last frame of each clip.

    All share the same noise.
    """
    decoder = load_vae(vae)
    scenes = [PROMPTS[i] for i in PICTURE_PROMPTS]
    text = WordEmbedder().encode([scene.caption for scene in scenes])
    rows: list[list[Tensor]] = []
    for student in students.values():
        spec = read_checkpoint(student).spec or StudentSpec()
        latents = student_clips(load_student(student, dtype=torch.float32), text, nfe, CLIP_FRAMES, PICTURE_SEED, spec)
        pixels = decode_latents(decoder, latents)
        frames = torch.cat([pixels[:, :, t] for t in (0, pixels.shape[2] // 2, -1)], dim=3)
        rows.append(list(frames.unsqueeze(2)))
    shown = ((grid(rows)[:, 0] + 1) / 2).clamp(0, 1).permute(1, 2, 0)
    pyplot = pyplot_for_files()
    height, width = shown.shape[:2]
    figure, axis = pyplot.subplots(figsize=((width + 200) / 100, (height + 60) / 100))
    axis.imshow(shown.numpy(), interpolation="nearest")
    axis.set_yticks([(i + 0.5) * height / len(rows) for i in range(len(rows))], list(students))
    axis.set_xticks([(i + 0.5) * width / len(scenes) for i in range(len(scenes))], [s.caption for s in scenes])
    axis.xaxis.tick_top()
    axis.tick_params(length=0, labelsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 88})
    pyplot.close(figure)
