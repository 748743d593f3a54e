"""Memory plans: bytes of weights, text encoder, KV memory, denoising and decoding, before anything is allocated."""

from .choices import Choice, cheapest, presets_by_cost
from .models import PlannedModel, planned_model
from .peaks import MemoryPlan, Phase, memory_plan
from .settings import PlanSettings, preset_settings

__all__ = [
    "Choice",
    "MemoryPlan",
    "Phase",
    "PlanSettings",
    "PlannedModel",
    "cheapest",
    "memory_plan",
    "planned_model",
    "preset_settings",
    "presets_by_cost",
]
