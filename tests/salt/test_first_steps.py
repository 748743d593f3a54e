"""More steps in the first block that a clip samples, as Causal Forcing++ plays its students of one and two steps."""

import pytest
import torch

from salt.block_plan import RolloutSettings
from salt.checkpoints.families import STUDENTS, family_of
from salt.cli.inspect import _spec
from salt.conditioning import Conditioning
from salt.errors import InputError
from salt.memory import MemoryPolicy
from salt.models.causal_model import CausalModel
from salt.noise import SeededNoise
from salt.pipeline import PipelineInputs
from salt.rollout import rollout
from salt.schedule import STEP_LISTS, Schedule
from salt.spec import StudentSpec
from tests.helpers import golden, tiny_system

ONE, FOUR = Schedule.of(1), Schedule.of(4)
FOUR_THEN_ONE = Schedule((1000,), first_steps=STEP_LISTS[4])
CLIP = dict(num_frames=33, seed=3, height=32, width=32, output_type="latent")


@pytest.fixture(scope="module")
def student():
    return golden.student()


def rolled(student, memory, frames, schedule, fuse=False, **options):
    noise = SeededNoise(5, 1, 16, 4, 6)
    text = Conditioning(torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(0)))
    settings = RolloutSettings(schedule, fuse=fuse)
    with torch.no_grad():
        return list(rollout(CausalModel(student), text, memory, noise, frames, settings, **options))


def latents(blocks):
    return torch.cat([block.latents for block in blocks], 2)


@pytest.mark.parametrize("policy", [MemoryPolicy(), MemoryPolicy("relative", 9, 3)], ids=str)
def test_the_first_block_takes_its_own_steps_to_the_bit(student, policy):
    memory = student.new_memory(policy, 1, 4, 6)
    by_hand = rolled(student, memory, 3, FOUR) + rolled(student, memory, 6, ONE)
    made = rolled(student, student.new_memory(policy, 1, 4, 6), 9, FOUR_THEN_ONE)
    assert [block.nfe for block in made] == [4, 2, 2]  # with the context pass of the block before
    assert torch.equal(latents(made), latents(by_hand))
    fused = rolled(student, student.new_memory(policy, 1, 4, 6), 9, FOUR_THEN_ONE, fuse=True)
    torch.testing.assert_close(latents(fused), latents(made), rtol=1e-4, atol=1e-4)
    assert sum(block.nfe for block in fused) == 4 + 1 + 1  # every later step is part of a context pass


def test_it_follows_a_start_but_not_a_memory_or_a_video(student):
    start = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    assert [b.nfe for b in rolled(student, memory, 6, FOUR_THEN_ONE, initial_latents=start)] == [5, 2]
    assert [b.nfe for b in rolled(student, memory, 6, FOUR_THEN_ONE)] == [1, 2]
    pipe = tiny_system.pipeline(spec=StudentSpec(first_steps=STEP_LISTS[8]))
    video = torch.rand(1, 3, 33, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    seen = []
    pipe(
        "a red circle", video=video, strength=0.8, callback_on_step_end=lambda p, i, t, k: seen.append(i) or {}, **CLIP
    )
    assert len(seen) == pipe.num_timesteps == 9  # three steps of each block remain


def test_the_pipeline_counts_its_calls_and_tells_the_timesteps():
    pipe, seen, bar = tiny_system.pipeline(spec=STUDENTS["causal-forcing-1step"]), [], []
    pipe.progress_bar = lambda total: bar.append(total) or Bar(bar)
    pipe("a red circle", callback_on_step_end=lambda p, i, t, k: seen.append((i, t)) or {}, **CLIP)
    first = Schedule.of(4).timesteps
    assert seen == [*enumerate(first), *((i, 1000.0) for i in range(4, 4 + 8))]
    assert pipe.num_timesteps == 4 + 8
    assert bar == [4 + 8 + 9, *["call"] * (4 + 8 + 9)]


class Bar:
    def __init__(self, calls):
        self.calls = calls

    def update(self):
        self.calls.append("call")

    def close(self):
        pass


def test_steps_of_a_call_and_of_the_student():
    spec = STUDENTS["causal-forcing-2step"]
    assert PipelineInputs(prompt="x").schedule(spec).first.steps == STEP_LISTS[4]
    assert PipelineInputs(prompt="x", num_inference_steps=8).schedule(spec).first.steps == STEP_LISTS[8]
    assert PipelineInputs(prompt="x", first_steps=(1000, 600, 300)).schedule(spec).first.nfe == 3
    assert StudentSpec.from_dict(spec.to_dict()) == spec
    assert _spec(spec).startswith("2 steps (4 in the first block), blocks of 1, shift 5")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("causal-forcing++/framewise-1step.pt", "causal-forcing-1step"),
        ("framewise-2step.safetensors", "causal-forcing-2step"),
        ("framewise/causal_forcing.pt", "causal-forcing-frame"),
    ],
)
def test_released_files_are_known_by_name(name, spec):
    family = family_of(f"models/diffusion_models/{name}")
    assert family is not None and family.spec == STUDENTS[spec]


@pytest.mark.parametrize(
    ("inputs", "field", "found"),
    [
        ({"num_first_steps": 2}, "num_first_steps", "more than the 4 steps"),
        ({"num_first_steps": 8, "first_steps": (1000, 1)}, "num_first_steps", "cannot be combined with `first_steps`"),
        ({"first_steps": (500, 700)}, "first_steps", "strictly falling"),
    ],
)
def test_first_steps_without_effect_are_refused(inputs, field, found):
    pipe = tiny_system.pipeline()
    with pytest.raises(InputError, match=found) as error:
        pipe("a red circle", **CLIP, **inputs)
    assert error.value.field == field


def test_first_steps_need_wans_rule_and_one_stepping():
    with pytest.raises(InputError, match="step rule krea"):
        Schedule((1000, 500), rule="krea", first_steps=(1000, 500, 250))
    with pytest.raises(InputError, match="expected one"):
        RolloutSettings(Schedule((1000, 500), first_steps=STEP_LISTS[4]), stepping=("sde",))
