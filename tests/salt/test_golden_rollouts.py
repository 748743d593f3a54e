"""The rollouts of Self Forcing, LongLive and Infinity-RoPE, reproduced through the public API."""

import pytest

from tests.helpers import golden


@pytest.fixture(scope="module")
def student():
    return golden.student()


@pytest.mark.parametrize("fuse", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("case", golden.ROLLOUTS)
def test_rollout_equals_the_reference(student, case, fuse):
    made, expected = golden.play(student, case, fuse=fuse), golden.expected(case)
    initial = golden.ROLLOUTS[case]["init_frames"]
    assert made.shape[2] - initial == expected.shape[2] or made.shape == expected.shape
    error = golden.relative_error(made[:, :, made.shape[2] - expected.shape[2] :], expected)
    print(f"{case} {'fused' if fuse else 'plain'}: relative error {error:.2e}")
    assert error <= 5e-5
