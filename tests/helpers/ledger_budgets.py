"""Recorded budgets of launches and bytes, which hold for one torch: others take operations apart in other ways."""

import pytest
import torch

BUDGET_TORCH = "2.13."
ROUNDING = 0.6  # of recorded launches
TOLERANCE = 0.001  # of recorded bytes: counts are exact, records are rounded


def check_budget(launches: float, moved: float, budget: tuple[float, float]) -> None:
    """budget: launches, and GB moved. A change that lowers them lowers the budget; one that raises them says why."""
    print(f"found ({launches:.0f}, {moved / 1e9:.2f}), recorded {budget}")
    if torch.__version__.startswith(BUDGET_TORCH):
        assert launches == pytest.approx(budget[0], abs=ROUNDING)
        assert moved / 1e9 == pytest.approx(budget[1], rel=TOLERANCE, abs=0.06)
