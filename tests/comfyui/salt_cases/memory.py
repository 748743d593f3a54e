"""The memory nodes and the semigroup defect, on salt-tiny."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch

from .session import FOLDER, PACK, error, run_case
from .tiny_model import OTHER, PROMPT, STUDENT_SPEC, TINY, extend, part, refusal, rollout, text, tiny

FILES, ADAPTER_POLICY = part("nodes.adapter.memory_files"), part("nodes.adapter.memory_policy")
PREFIX = part("nodes.adapter.file_prefix")
NODES, POLICY, DIAGNOSTICS = part("nodes.nodes_memory"), part("nodes.nodes_policy"), part("nodes.nodes_diagnostics")


def use_own_folders() -> None:
    """ComfyUI's output and temp folders, of this process alone."""
    import folder_paths

    folder_paths.set_output_directory(str(FOLDER / "output"))
    folder_paths.set_input_directory(str(FOLDER / "input"))
    folder_paths.set_temp_directory(str(FOLDER / "temp"))


def schemas():
    """Every node of these modules as this core reads it: [id, inputs, outputs]."""
    found = [node.GET_SCHEMA() for module in (NODES, POLICY, DIAGNOSTICS) for node in module.NODES]
    return [[s.node_id, len(s.inputs), len(s.outputs)] for s in found]


def files():
    """Saved, listed, loaded and gone on from, with and without guidance; what another model's memory says."""
    use_own_folders()
    model, other, found = tiny(), tiny(), {}
    other.add_patches({"diffusion_model.head.head.weight": (torch.ones(1),)}, 0.5)
    negative = [[torch.zeros_like(text(PROMPT)[0][0]), {}]]
    for name, guided in (("plain", {}), ("guided", {"cfg": 2.0, "negative": negative})):
        latents, memory, _ = rollout(model, **guided)
        path = NODES.SaltSaveMemory.execute(memory, f"salt_memories/{name}").args[0]
        listed = FILES.memory_files()[0]
        assert NODES.SaltLoadMemory.validate_inputs(listed) is True
        loaded = NODES.SaltLoadMemory.execute(listed, model).args[0]
        ours, theirs = (extend(model, m, latents, **guided)[0]["samples"] for m in (memory, loaded))
        found[name] = {"listed": listed, "path": Path(path).is_file(), "equal": torch.equal(ours, theirs)}
    again = NODES.SaltSaveMemory.execute(memory, "salt_memories/guided").args[0]
    Path(path).with_name("away.safetensors").symlink_to(FOLDER / "unmounted" / "away.safetensors")
    later, unguided, _ = extend(model, memory, latents)
    heads = tiny()
    wan = PACK.comfy_model.wan_model(heads)
    wan.num_heads *= 2  # equal weights, other heads
    other_heads = refusal(NODES.SaltLoadMemory.execute, listed, heads)
    wan.num_heads //= 2
    return found | {
        "files": sorted(p.name for p in Path(path).parent.iterdir() if p.is_file()),
        "second name differs": again != path and Path(path).is_file(),
        "other model": refusal(NODES.SaltLoadMemory.execute, listed, other),
        "other heads": other_heads,
        "absent": NODES.SaltLoadMemory.validate_inputs("salt_memories/none.safetensors [output]"),
        "link": [name for name in FILES.memory_files() if "away" in name],
        "linked": NODES.SaltLoadMemory.validate_inputs(None),
        "guided again": refusal(extend, model, unguided, later, **guided),
        "bar": NODES.SaltSaveMemory.execute(memory, "salt_memories/bar").ui["salt_memory"],
    }


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def choices():
    """`newest` with no file, one and two; prefixes that are taken and refused; what a killed run left behind."""
    use_own_folders()
    import folder_paths

    save, load = NODES.SaltSaveMemory, NODES.SaltLoadMemory
    root = FOLDER / "output" / "salt_memories"
    shutil.rmtree(root, ignore_errors=True)
    none = {"listed": FILES.memory_files(), "valid": load.validate_inputs("newest")}
    none |= {"said": refusal(load.execute, "newest"), "again": load.fingerprint_inputs("newest") != 0}
    memory = rollout(tiny())[1]
    first = Path(save.execute(memory, "salt_memories/%year%/%date:yy%_%width%x%height%_%None.seed%").args[0])
    one = load.fingerprint_inputs("newest")
    same = load.fingerprint_inputs("newest") == one
    second = Path(
        save.execute(part("nodes.io_types").ClipMemory(memory.memory.copied("cpu")), "salt_memories/b").args[0]
    )
    os.utime(first, ns=(0, second.stat().st_mtime_ns + 5))
    newer = load.fingerprint_inputs("newest")
    os.utime(first, ns=(0, 0))
    # What a run leaves that is killed in the middle: once of a name that is never written again.
    partial = part("salt.io.partial_files").new_partial(root / "dated_00001_.safetensors", ".part")
    left = partial.with_name(partial.name.replace(f"-{os.getpid()}-", f"-{dead_process()}-"))
    left.mkdir()
    shutil.copy(second, left / "dated_00001_.safetensors")
    listed = FILES.memory_files()
    (root / "out").symlink_to(FOLDER, target_is_directory=True)
    refused = ["clip", "salt_memories", "salt_memories/", "salt_memories/../clip", "../salt_memories/x", "/a/clip", "",
               "salt_memories/out/clip", "salt_memories/a\0b", "salt_memoriesx/clip", "salt_memories/.x/clip",
               "salt_memories/.clip", "salt_memories/" + "x" * 300, "%date:yyyy%/clip"]  # fmt: skip
    answers = {name[:40]: save.validate_inputs(name) for name in refused}
    taken = [save.validate_inputs(n) for n in (None, "salt_memories/a/b", f"{root}/clip", "salt_memories/x/../y")]
    third = save.execute(memory, "salt_memories/b").args[0]
    (root / "out").unlink()
    now = datetime(2026, 3, 4, 5, 6, 7)
    pattern = "%date:yyyy-MM-dd% %date:hh.mm% %date:d/M yy hmmss% %a.b% %width% %year%"
    return {
        "none": none,
        "first": str(first.relative_to(root)),
        "dates": [f"{datetime.now():%Y}", f"{datetime.now():%y}"],
        "fingerprints": [same, one != newer or load.fingerprint_inputs("newest") != one],
        "listed": listed,
        "loaded": load.execute("newest").args[0].memory.next_frame,
        "answers": answers,
        "executed": refusal(save.execute, memory, "clip"),
        "taken": taken,
        "left": left.exists(),
        "third": Path(third).name,
        "expanded": PREFIX.with_dates(pattern, now),
        "outside": load.validate_inputs("../../etc/passwd [output]"),
        "output": folder_paths.get_output_directory(),
    }


def rewinding():
    import comfy.utils

    model = tiny()
    policy = PACK.memory.MemoryPolicy.parse("sink:3,window:6")
    latents, memory, _ = rollout(model)
    back, report = NODES.SaltRewindMemory.execute(memory, 1.5, "seconds").args
    a, b = NODES.SaltForkMemory.execute(back).args
    another = dict(seed=5, positive=text(OTHER))  # of one prompt two clips lie close together
    again, other = (extend(model, m, latents, seconds=0.7, **c)[0]["samples"] for m, c in ((a, {}), (b, another)))
    empty = NODES.SaltRewindMemory.execute(memory, 0, "seconds").args[0]
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: None)  # so that previews are made
    anew = extend(model, empty, latents, vae=part("nodes.adapter.tiny_model").load_vae())[0]["samples"]
    comfy.utils.set_progress_bar_global_hook(None)
    _, windowed, _ = rollout(model, policy=policy, seconds=3.0)
    _, blended, _ = rollout(model, policy=PACK.memory.MemoryPolicy.parse("blended:3,window:6"), seconds=3.0)
    a_buffers, b_buffers = ([t for layer in m.memory.store.buffers for t in layer] for m in (a, b))
    for t in a_buffers:
        t.zero_()
    apart = all(t.any() for t in b_buffers)
    return {
        "report": report,
        "again": error(again, latents["samples"][:, :, : again.shape[2]]),
        "other": error(other, latents["samples"][:, :, : again.shape[2]]),
        "untouched": memory.memory.next_frame,
        "from nothing": error(anew, latents["samples"]),
        "apart": apart,
        "mixed": NODES.SaltRewindMemory.execute(blended, 3, "latent frames").args[1],
        "lost": NODES.SaltRewindMemory.execute(windowed, 6, "latent frames").args[1],
        "beyond": refusal(NODES.SaltRewindMemory.execute, memory, 100.0, "seconds"),
    }


def inspecting():
    use_own_folders()
    _, memory, _ = rollout(tiny(), policy=PACK.memory.MemoryPolicy.parse("sink:3,window:6,int8"))
    node = NODES.SaltInspectMemory
    table, picture = node.execute(memory).args
    guided = rollout(tiny(), cfg=2.0, negative=[[torch.zeros_like(text(PROMPT)[0][0]), {}]])[1]
    shown = node.execute(guided)
    return {
        "table": table,
        "size": list(picture.shape),
        "colours": len(picture.reshape(-1, 3).unique(dim=0)),
        "guided": shown.args[0],
        "ui": sorted(shown.ui),
    }


def policies():
    """Every kind as the widgets make it; the predicted bytes beside the allocated ones."""
    model, found = tiny(), {}
    for kind in ADAPTER_POLICY.POLICY_KINDS:
        window = 9 if kind == "shots" else 6  # which also holds as much of a shot as of the sink
        widgets = dict(kind=kind, window=window, sink=3, blend=0.8, precision="int8", residence="device")
        policy, prediction = POLICY.SaltMemoryPolicy.execute(
            **widgets, model=model, width=64, height=64, seconds=2.0
        ).args
        sizes = []
        for seconds in (1.0, 2.0):  # 1 s is no whole number of blocks
            memory = rollout(model, policy=policy, seconds=seconds, vae=part("nodes.adapter.tiny_model").load_vae())[
                1
            ].memory
            sizes.append([ADAPTER_POLICY.predicted_bytes(model, policy, 64, 64, seconds), memory.nbytes])
        found[kind] = [str(policy), prediction, sizes]
    bad = dict(kind="window", window=1, sink=0, blend=0.9, precision="model", residence="device")
    found["small"] = refusal(rollout, model, policy=ADAPTER_POLICY.policy_of(**bad))
    return found


def plan():
    """The node's text for a card and the bytes of its memory beside those of the policy's own prediction."""
    use_own_folders()
    model, policy = tiny(), PACK.memory.MemoryPolicy("window", window=12)
    node, adapter = DIAGNOSTICS.SaltPlan, part("nodes.adapter.memory_plan")
    widgets = dict(width=832, height=480, seconds=5.0)
    content, peak = node.execute(model, vram=8.0, guided=False, policy=policy, **widgets).args
    large = node.execute(model, vram=1.0, guided=False, policy=policy, width=4096, height=4096, seconds=5.0).args
    bytes_of = {}
    for guided in (False, True):
        found = adapter.plan_of_model(model, policy, guided=guided, **widgets)
        bytes_of[guided] = found.phase("denoising").parts["KV memory"]
    expected = part("nodes.adapter.memory_policy").predicted_bytes(model, policy, 832, 480, 5.0)
    try:
        node.execute(model, vram=0.0, guided=False, width=832, height=470, seconds=5.0)
    except ValueError as caught:
        error = str(caught)
    return {
        "text": content,
        "peak": peak,
        "too large": large[0],
        "memory": bytes_of[False],
        "guided": bytes_of[True],
        "expected": expected,
        "error": error,
    }


def euler_mean(defects) -> float:
    values = [v for (_, operator), v in defects.items() if operator == "euler"]
    return sum(values) / len(values)


@torch.inference_mode()
def defect():
    """The node's numbers beside the engine's own on the same noise."""
    use_own_folders()
    widgets = dict(seconds=1.5, width=64, height=64, seed=4, frames_per_block=0)
    node = DIAGNOSTICS.SaltSemigroupDefect
    mean, table, image = node.execute(tiny(), text(PROMPT), "1000,875,750; 500,375,250", **widgets).args
    student = PACK.checkpoints.load_student(TINY, dtype=torch.float32)
    engine = part("salt.semigroup_defect")
    noise = PACK.noise.SeededNoise(4, 1, 16, 8, 8)
    triples = [(1000, 875, 750), (500, 375, 250)]
    shift = STUDENT_SPEC.spec_of(tiny()).shift
    settings = PACK.rollout.RolloutSettings(PACK.schedule.Schedule.of(4, shift))
    memory = student.new_memory(PACK.memory.MemoryPolicy(), 1, 8, 8)
    words = PACK.conditioning.Conditioning(text(PROMPT)[0][0])
    causal = PACK.causal_model.CausalModel(student)
    blocks = engine.semigroup_defect(causal, words, memory, noise, 9, settings, triples=triples)
    spec = part("salt.spec").StudentSpec(frames_per_block=0, shift=shift)
    bidirectional = STUDENT_SPEC.with_spec(tiny(), spec)
    bidirectional_model = part("salt.models.causal_model").BidirectionalModel(student)
    clip = engine.semigroup_defect(bidirectional_model, words, None, noise, 7, settings, triples=triples)
    whole = node.execute(bidirectional, text(PROMPT), "1000,875,750; 500,375,250", **widgets).args[1]
    return {
        "mean": mean, "engine": euler_mean(blocks),
        "whole": [whole, engine.defect_table({"student": clip})],
        "blocks of a clip": refusal(
            node.execute, bidirectional, text(PROMPT), "1000,875,750", **widgets | {"frames_per_block": 3}
        ),
        "table": table, "image": list(image.shape),
        "colours": len(image.reshape(-1, 3).unique(dim=0)),
        "bad": refusal(node.execute, tiny(), text(PROMPT), "1000, 875", **widgets),
        "off the list": refusal(node.execute, tiny(), text(PROMPT), "900, 875, 0", **widgets),
    }  # fmt: skip


if __name__ == "__main__":
    run_case(schemas, files, choices, rewinding, inspecting, policies, defect, plan)
