"""What newer ComfyUI versions do with weights, attention and blocks goes on beside a memory, or is refused by name."""

CASES = "core_paths"


def test_scaled_fp8_weights_give_the_clip_of_what_they_stand_for(inside):
    found = inside(CASES, "fp8")
    assert found["kind"] == "QuantizedTensor" and found["memory"] == "torch.float32" and found["same digits"]
    assert found["error"] <= 1e-4, "core takes the weights back to float32 on the CPU"
    # with a LoRA they are quantised again
    assert found["error with a LoRA"] <= found["error of the weights"] < 0.2 * found["LoRA moves"]


def test_int8_weights_give_the_clip_of_what_they_stand_for(inside):
    found = inside(CASES, "int8")
    assert found["kind"] == "QuantizedTensor" and found["memory"] == "torch.float32" and found["same digits"]
    # core computes in int8 on the CPU, too: the inputs of a layer are rounded as finely as its weights
    assert max(found["error"], found["error with a LoRA"]) <= 2 * found["error of the weights"] < 0.1
    assert found["LoRA moves"] > 0.1


def test_core_captures_no_block_and_torch_s_graphs_give_the_same_clip(inside):
    found = inside(CASES, "graphs")
    assert found["compiled"] <= 1e-4
    if found["after"] is None:
        assert found["in a call"] == ["None"], "no such setting before 0.33"
    else:
        assert found["in a call"] == ["True"] and found["after"] is False


def test_a_patch_after_a_block_acts_and_a_control_net_there_is_refused(inside):
    found = inside(CASES, "block_patches")
    assert found["error"] <= 1e-5 and found["moved"] > 0.01
    assert "WanUni3CControlnetApply" in found["uni3c"] and "control net for a whole clip" in found["uni3c"]


def test_an_attention_set_on_a_model_computes_every_layer_and_call(inside):
    found = inside(CASES, "attention_backend")
    assert max(found["node"], found["own"]) <= 1e-4
    assert found["calls per layer"] >= found["forwards"] * 2, "self- and cross-attention"
