"""Memory plans beside the peaks of runs on the fake device: within 10 %, phase by phase."""

from dataclasses import replace

import pytest

from benchmarks.ledger.runs import RunCase, run_costs
from salt.memory import PRECISIONS, MemoryPolicy
from salt.planning import PlanSettings, memory_plan, planned_model, preset_settings

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

BLOCKS = 5
PHASES = {"text": "text", "denoise": "denoising", "decode": "decoding"}
CASES = {
    "no decoding": (RunCase(decoder="none"), {"decoder": "none", "text": "none"}),
    "low memory, no decoding": (
        RunCase("low memory", decoder="none", policy=None),
        {"decoder": "none", "text": "none"},
    ),
    "exact": (RunCase(), {"text": "none"}),
    "low memory, prompt encoded": (RunCase("low memory", decoder="none", text=True), {"decoder": "none"}),
    "guidance": (
        RunCase(decoder="none", options={"guidance_scale": 3.0, "negative_prompt": "another"}),
        {"decoder": "none", "text": "none", "guided": True},
    ),
    "14B, int4, no decoding": (
        RunCase(size="14B", policy="sink:3,window:12,int4", decoder="none"),
        {"decoder": "none", "text": "none"},
    ),
}
FAST = ("no decoding",)
KINDS = ("full", "window:12", "sink:3,window:12", "relative:3,window:12", "blended:3,window:12", "cyclic:12")
GRID = [
    (size, f"{kind}{'' if precision == 'model' else f',{precision}'}{home}")
    for size in ("1.3B", "14B")
    for kind in KINDS
    for precision in PRECISIONS
    for home in ("", ",cpu")
]
FAST_GRID = [("1.3B", "full,cpu")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in CASES])
def test_plans_agree_with_peaks_of_the_code(device, name):
    case, changes = CASES[name]
    found, model = run_costs(case), planned_model(case.size)
    policy = MemoryPolicy.parse(case.policy) if case.policy else MemoryPolicy()
    seconds = (12 * BLOCKS - 3) / 16
    settings = preset_settings(case.preset, model, replace(PlanSettings(seconds=seconds, policy=policy), **changes))
    plan = memory_plan(model, settings)
    phases = {p: PHASES[p] for p in found.peaks if p in PHASES and not (p == "decode" and case.decoder == "none")}
    if not case.text:
        phases.pop("text", None)
    # Wan's VAE is not on the device where the ledger does not decode.
    vae = plan.phases[0].parts["VAE"] if case.decoder != "wan" else 0
    for simulated, planned in phases.items():
        planned_bytes = plan.phase(planned).bytes - vae
        assert planned_bytes == pytest.approx(found.peaks[simulated], rel=0.1), (simulated, plan.phase(planned))
    if case.decoder == "wan":
        assert plan.peak == pytest.approx(found.reserved, rel=0.1)


@pytest.mark.parametrize(
    ("size", "policy"), [pytest.param(*c, marks=[] if c in FAST_GRID else pytest.mark.slow) for c in GRID]
)
def test_every_memory_is_planned(device, size, policy):
    """Denoising with every policy, precision and residence, in two steps per block: more steps need no more."""
    steps = {"num_inference_steps": 2}
    found = run_costs(RunCase(size=size, policy=policy, decoder="none", options=steps))
    settings = PlanSettings(
        seconds=(12 * BLOCKS - 3) / 16, policy=MemoryPolicy.parse(policy), decoder="none", text="none"
    )
    plan = memory_plan(planned_model(size), settings)
    vae = plan.phases[0].parts["VAE"]  # which is not on the device where the ledger does not decode
    assert plan.phase("denoising").bytes - vae == pytest.approx(found.peaks["denoise"], rel=0.1)
