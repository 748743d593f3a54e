"""Other nodes' patches of a MODEL before Salt's nodes: honoured as core honours them, or refused by the node's name."""

CASES, NODES = "guidance", "core_nodes"
# By core's node id, with the settings of `core_nodes.SET`.
CHANGED = """APG CFGNorm CFGZeroStar FreSca LatentApplyOperationCFG LoraLoader LoraLoaderModelOnly Mahiro
ModelMergeSimple ModelSamplingSD3 RescaleCFG SkipLayerGuidanceDiT SkipLayerGuidanceDiTSimple SkipLayerGuidanceSD3
TCFG""".split()
REFUSED = """ContextWindowsManual DifferentialDiffusion EasyCache HyperTile LazyCache ModelSamplingDiscrete
ModelSamplingContinuousEDM PatchModelAddDownscale PerpNeg PerturbedAttentionGuidance RenormCFG SelfAttentionGuidance
TomePatchModel""".split()
# Nodes that only do something on another kind of model, or on another machine.
NEUTRAL = {"ModelMergeBlocks", "MultiGPU_WorkUnits", "SelectModelDevice", "UNetCrossAttentionMultiply", "wanBlockSwap"}
NEUTRAL |= {"UNetSelfAttentionMultiply", "UNetTemporalAttentionMultiply", "ModelAttentionBackend", "WanAnimate2Cache"}


def test_no_node_of_core_s_is_passed_over(inside):
    found = inside(NODES, "every_node")
    passed = {name: answer for name, answer in found.items() if answer == "passed over"}
    neutral = {name for name, answer in found.items() if answer == "neutral"}
    assert passed == {} and neutral <= NEUTRAL and len(found) > 50
    assert [name for name in CHANGED if found[name] != "changed"] == []
    for name in REFUSED:
        assert name in found[name] and found[name].endswith("[0 calls]"), found[name]
        assert len(found[name]) < 400


def test_functions_that_do_nothing_change_nothing(inside):
    found = inside(CASES, "neutral")
    assert len(found) == 15 and max(found.values()) <= 1e-4


def test_functions_act_on_each_block_as_the_engine_would(inside):
    found = inside(CASES, "values")
    assert max(found["norm"], found["half"]) <= 1e-4 and found["norm moves"] > 0.01


def test_functions_act_before_every_node_that_samples(inside):
    found = inside(CASES, "nodes")
    assert found["extended"] <= 1e-4, "two parts are the clip made in one go"
    assert min(found[n] for n in ("defect moves", "sampler moves", "sampler with cfg moves")) > 1e-3
    assert found["skipped layers move"] > 0.01 and found["skipped at no step"] <= 1e-4
    if "override" in found:
        assert max(found["override"], found["override, sampler"]) <= 1e-4, "cfg 3 by a node is cfg 3"
        assert "negative must be connected: CFGOverride sets cfg to 3" in found["override alone"]


def test_the_model_s_own_sampling_is_used_or_said(inside):
    found = inside(CASES, "samplings")
    assert found["as the widget"] == found["the student's own"] == found["widget first"] == 0 < found["moved"]
    assert found["note"].endswith("the shift 8 of ModelSamplingSD3 has no effect: the shift widget says 5")
    assert "no effect" not in found["no note"]
    assert [round(sigma, 3) for sigma in found["sigmas"]] == [0.75, 0.889]
    assert "ModelSamplingDiscrete" in found["eps"] and "flow matching" in found["eps"]
    if "noise" in found:
        assert found["noise"] == 0 < found["noise moves"]


def test_what_a_memory_cannot_follow_is_named(inside):
    messages = {
        "area": "positive has an area",
        "negative area": "negative has an area",
        "mask": "positive has a mask",
        "off": "positive: found 0 prompts in effect at sigma 0.750",
        "combined": "positive: found 2 prompts in effect at sigma 1.000",
        "image": "positive has image latents (WanImageToVideo), which a text-to-video model does not read",
        "clip vision": "positive has a CLIP vision output, which this model does not read",
        "width": "positive has a text of width 768, as another text encoder makes it, expected ",
        "ahead": "positive has latents before or behind the clip",
        "unknown": "set as sampler_new_function, which Salt does not know",
        "noise": "changes noise or sigmas",
        "around": "calls it past ComfyUI's functions",
        "speech": "WanInfiniteTalkToVideo",
        "unread": "patches noise_refiner, which Wan 2.1 in this ComfyUI does not read",
        "control net": "adds a control net for a whole clip",
        "layer": "dit double_block 99, which Wan 2.1 in this ComfyUI does not read",
    }
    found = inside(CASES, "refusals")
    assert {key: text for key, text in messages.items() if text not in found[key]} == {}, found


def test_prompts_may_take_turns_in_the_steps(inside):
    found = inside(CASES, "turns")
    assert found["same"] <= 1e-4 and min(found["from the first"], found["from the second"]) > 0.01


def test_marks_of_patches_that_are_gone_count_for_nothing(inside):
    found = inside(CASES, "marks", warns=True)
    assert found["left"], "core leaves the class's own method on the instance"
    assert found["before"] == found["after"] == 1, "keys of the prompt are computed once per rollout"
    assert found["said"] == [1, 1], "the patch is said while it is there, and not after"
