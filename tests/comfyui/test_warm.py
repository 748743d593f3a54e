"""Queued runs find things ready, and nothing of it touches a memory that is held; core's own ways to save work too."""

import pytest

CASES = "warm"


def test_a_queued_run_takes_the_buffers_of_the_one_before(inside):
    found = inside(CASES, "buffers")
    assert found.pop("other length") is None, "buffers of another size are left alone"
    assert len(found) == 3 and all(case == dict(fresh=True, same=True, equal=True) for case in found.values()), found


def test_a_memory_that_is_held_is_never_written(inside):
    assert inside(CASES, "held") == {"unchanged": True, "apart": True, "goes on": True}


def test_a_memory_rests_on_a_device_only_within_our_share(inside):
    large, small = inside(CASES, "on_a_device").values()
    assert large == {"itself": True, "on": "cuda", "own buffers": True, "equal": True, "spare": 0}
    assert small == {"itself": False, "on": "cpu", "own buffers": False, "equal": True, "spare": 0}


def test_a_prompt_is_worked_out_once_a_run_and_the_fingerprint_once_a_model(inside):
    _, first, second = inside(CASES, "worked_out")
    assert first == {"embedded": 1, "keys": 1, "fingerprint": 1}
    assert second == {"embedded": 2, "keys": 2, "fingerprint": 1, "equal": True}


@pytest.mark.slow
def test_core_s_compile_node_compiles_once_for_all_queued_runs(inside):
    found = inside(CASES, "compile_node")
    assert found["error"] <= 1e-4 and found["again"] <= 1e-4
    assert found["compiled"]["graphs"] > 0 and found["after"] == found["compiled"]


def test_core_s_sage_option_computes_every_attention(inside):
    found = inside(CASES, "sage", "--cpu", "--use-sage-attention")
    # two blocks of two steps and a context pass, two layers of self- and cross-attention
    assert found["calls"] == 2 * 3 * 2 * 2 and found["longest keys"] == 2 * 72
    assert found["error"] <= 1e-4


def test_weights_that_core_casts_at_each_use_play_the_same_clip(inside):
    found = inside(CASES, "low_vram")
    assert found["low vram"] and found["cast"] == 1
    assert found["error"] <= 1e-5 and found["moved"] > 0.01
