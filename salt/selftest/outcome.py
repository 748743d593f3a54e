"""Outcomes of checks, and the report that they make."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Literal

Status = Literal["passed", "failed", "not run", "measured"]


class NotRun(Exception):
    """Why a check cannot run on this machine."""


@dataclass(frozen=True)
class Outcome:
    """What a check found. detail: for people; figures: the same as numbers."""

    status: Status
    detail: str
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A check of the report. seconds: that it took."""

    name: str
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class SelfTestReport:
    """where: device, versions, by name."""

    where: dict[str, str]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.outcome.status == "failed")

    @property
    def trusted(self) -> bool:
        """Whether something was checked, and nothing failed."""
        return not self.failed and any(row.outcome.status == "passed" for row in self.rows)

    @property
    def verdict(self) -> str:
        """One line: whether the device can be trusted."""
        count = Counter(row.outcome.status for row in self.rows)
        device = self.where["device"]
        rest = f"{count['passed']} checks passed, {count['not run']} not run, in {self.seconds:.0f} s"
        if self.trusted:
            return f"{device} can be trusted: {rest}"
        names = ", ".join(row.name for row in self.failed) or "every check (none ran)"
        return f"{device} cannot be trusted: failed {names}; {rest}"

    def text(self) -> str:
        """A table for people and issues."""
        width = max(len(row.name) for row in self.rows)
        head = [f"{name}: {value}" for name, value in self.where.items()]
        rows = [f"{_shown(r.outcome.status)}  {r.name:{width}}  {r.outcome.detail}" for r in self.rows]
        return "\n".join([*head, "", *(row.rstrip() for row in rows), "", self.verdict])

    def json(self) -> str:
        """The same for programs."""
        checks = {row.name: {**asdict(row.outcome), "seconds": round(row.seconds, 3)} for row in self.rows}
        values = {"trusted": self.trusted, "verdict": self.verdict, "where": self.where, "checks": checks}
        return json.dumps(values, indent=1)


def _shown(status: Status) -> str:
    return f"{status.upper() if status == 'failed' else status:8}"


def within(error: float, limit: float, what: str = "error") -> Outcome:
    """Passed where `error` is at most `limit`; NaN fails."""
    detail = f"{what} {error:.1e} (at most {limit:.0e})"
    return Outcome("passed" if error <= limit else "failed", detail, {"error": error, "limit": limit})
