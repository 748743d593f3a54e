"""The student compared with diffusers' class, and its additions: timesteps per frame, hidden states, checkpointing."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch._dynamo.utils import counters

from salt.conditioning import Conditioning
from salt.memory import MemoryPolicy
from salt.model_input import ModelInput
from salt.models.causal_model import CausalModel
from salt.models.fingerprint import fingerprint
from salt.models.transformer_salt import SaltTransformer3DModel
from tests.helpers import golden

SMALL = dict(num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=2, text_dim=32, freq_dim=32)
I2V = dict(in_channels=36, image_dim=40, added_kv_proj_dim=48)


def pair(**config):
    """diffusers' model and ours with the same weights."""
    torch.manual_seed(1)
    theirs = WanTransformer3DModel(**{**SMALL, **config}).eval()
    ours = SaltTransformer3DModel(**{**SMALL, **config}).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@torch.no_grad()
def test_without_memory_it_is_the_bidirectional_model():
    theirs, ours = pair()
    x, text = torch.randn(2, 16, 5, 4, 6), torch.randn(2, 7, 32)
    t = torch.tensor([900.0, 300.0])
    assert torch.allclose(ours(x, t, text).sample, theirs(x, t, text).sample, atol=2e-6)


@torch.no_grad()
def test_image_to_video_variant_is_diffusers_too():
    theirs, ours = pair(**I2V)
    x, text, image = torch.randn(1, 36, 3, 4, 4), torch.randn(1, 512, 32), torch.randn(1, 9, 40)
    t = torch.tensor([700.0])
    expected = theirs(x, t, text, image).sample
    assert torch.allclose(ours(x, t, text, image).sample, expected, atol=2e-6)
    assert not torch.allclose(ours(x, t, text, image.flip(-1)).sample, expected, atol=2e-5)


@torch.no_grad()
def test_timesteps_per_frame_equal_diffusers_per_token_timesteps():
    theirs, ours = pair()
    x, text = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 7, 32)
    t = torch.tensor([[0.0, 500.0, 1000.0]])
    per_token = t.repeat_interleave(4, dim=1)
    assert torch.allclose(ours(x, t, text).sample, theirs(x, per_token, text).sample, atol=2e-6)


@torch.no_grad()
def test_timesteps_per_frame_cost_one_time_row_per_frame():
    _, ours = pair()
    rows = []
    ours.condition_embedder.time_proj.register_forward_hook(lambda m, args, out: rows.append(out.shape[:-1].numel()))
    ours(torch.randn(1, 16, 3, 4, 4), torch.zeros(1, 3), torch.randn(1, 7, 32))
    assert rows == [3]


@torch.no_grad()
def test_hidden_state_after_a_block():
    _, ours = pair()
    x, text, t = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 7, 32), torch.tensor([500.0])
    seen = []
    ours.blocks[0].register_forward_hook(lambda m, args, out: seen.append(out))
    out = ours(x, t, text, hidden_after=0)
    assert torch.equal(out.hidden, seen[0]) and out.sample.shape == x.shape
    assert torch.equal(ours.features(x, t, text, 0), out.hidden)
    with pytest.raises(ValueError, match="found block 2, expected 0 to 1"):
        ours(x, t, text, hidden_after=2)


@torch.no_grad()
def test_positions_beyond_the_1024_table():
    """Attention with RoPE depends on distances: a clip at far positions gives the same flow, to float precision."""
    _, ours = pair()
    model, text = CausalModel(ours), Conditioning(torch.randn(1, 7, 32))
    clean, noisy = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 16, 3, 4, 4)

    def flow_at(start):
        memory = ours.new_memory(MemoryPolicy("window", 6), 1, 4, 4)
        memory.next_frame = memory.origin = start
        write = memory.open(write=3)
        model(ModelInput(clean, torch.zeros(1, 3), text, write))
        memory.commit(write)
        return model(ModelInput(noisy, torch.full((1, 3), 800.0), text, memory.open(read=3)))

    assert torch.allclose(flow_at(100_000), flow_at(0), atol=2e-5)


@torch.no_grad()
def test_teacher_forcing_equals_a_rollout_with_perfect_memory():
    student = golden.student()
    text = torch.randn(1, 12, 64)
    clean, noisy = torch.randn(1, 16, 12, 4, 6), torch.randn(1, 16, 12, 4, 6)
    t = torch.full((1, 12), 600.0)
    for policy in (MemoryPolicy(), MemoryPolicy("window", 6), MemoryPolicy("sink", 8, 2)):
        context = student.block_causal([3] * 4, 4, 6, clean_context=True, policy=policy)
        both = student(
            torch.cat([clean, noisy], 2), torch.cat([torch.zeros_like(t), t], 1), text, attention_context=context
        ).sample[:, :, 12:]
        memory, model, stepwise = student.new_memory(policy, 1, 4, 6), CausalModel(student), []
        for k in range(0, 12, 3):
            here = slice(k, k + 3)
            stepwise.append(model(ModelInput(noisy[:, :, here], t[:, here], Conditioning(text), memory.open(read=3))))
            write = memory.open(write=3)
            model(ModelInput(clean[:, :, here], torch.zeros(1, 3), Conditioning(text), write))
            memory.commit(write)
        assert golden.relative_error(both, torch.cat(stepwise, 2)) < 2e-6, policy


@pytest.mark.parametrize(
    "policy", [MemoryPolicy(), MemoryPolicy("sink", 6, 1), MemoryPolicy("relative", 6, 1)], ids=str
)
def test_gradient_checkpointing_recomputes_with_the_memory_of_its_forward(policy):
    """Backward runs after later blocks were written; recomputed activations must not depend on them."""
    torch.manual_seed(0)
    latents, text = torch.randn(1, 16, 12, 4, 6), Conditioning(torch.randn(1, 12, 64))

    def gradients(checkpointing):
        student = golden.student()
        if checkpointing:
            student.enable_gradient_checkpointing()
        model, memory = CausalModel(student), student.new_memory(policy, 1, 4, 6)
        loss = torch.zeros(())
        for k in range(0, 12, 3):
            block = latents[:, :, k : k + 3]
            loss = loss + model(ModelInput(block, torch.full((1, 3), 700.0), text, memory.open(read=3))).square().mean()
            with torch.no_grad():
                write = memory.open(write=3)
                model(ModelInput(block, torch.zeros(1, 3), text, write))
                memory.commit(write)
        loss.backward()
        return {n: p.grad for n, p in student.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-7, rtol=1e-4), name


def test_context_pass_refuses_gradient():
    student = golden.student()
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    with pytest.raises(RuntimeError, match="torch.no_grad"):
        CausalModel(student)(
            ModelInput(
                torch.randn(1, 16, 3, 4, 6),
                torch.zeros(1, 3),
                Conditioning(torch.randn(1, 12, 64)),
                memory.open(write=3),
            )
        )


@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "repeated blocks"])
@torch.no_grad()
def test_compile_does_not_recompile_per_block(whole):
    graphs = []

    def counting_backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    eager, compiled = golden.student(), golden.student()
    if whole:
        compiled.compile(backend=counting_backend)
    else:
        compiled.compile_repeated_blocks(backend=counting_backend)
    row = golden.ROLLOUTS["sink3_window12"]
    made = golden.play(compiled, row["case"])
    assert golden.relative_error(made, golden.play(eager, row["case"])) < 1e-5
    after_warm_up = len(graphs)
    assert after_warm_up > 0
    golden.play(compiled, row["case"])
    assert len(graphs) == after_warm_up, "a second clip of nine blocks compiled again"
    torch._dynamo.reset()


@torch.no_grad()
def test_condition_channels_are_sliced_to_the_block():
    """Image-to-video by blocks: mask and condition cover the clip, a block uses their frames at its position."""
    ours = pair(**I2V)[1]
    channels = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(1, 20, 6, 4, 4)
    text = Conditioning(torch.randn(1, 512, 32), torch.randn(1, 9, 40), channels)
    seen = []
    ours.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, 16:, :, 0, 0]))
    memory, model = ours.new_memory(MemoryPolicy(), 1, 4, 4), CausalModel(ours)
    for _ in range(2):
        write = memory.open(write=3)
        model(ModelInput(torch.randn(1, 16, 3, 4, 4), torch.zeros(1, 3), text, write))
        memory.commit(write)
    assert [x[0].tolist() for x in seen] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and seen[0].shape == (20, 3)


def test_input_that_does_not_fit_the_memory():
    student = golden.student()
    memory = student.new_memory(MemoryPolicy(), 1, 4, 6)
    with pytest.raises(ValueError, match="expected \\(1, 3, 2, 3\\)"):
        student(
            torch.randn(2, 16, 3, 4, 6), torch.zeros(2), torch.randn(2, 12, 64), attention_context=memory.open(read=3)
        )
    with pytest.raises(ValueError, match="multiples of the patch 2x2"):
        student.new_memory(MemoryPolicy(), 1, 5, 6)


def test_fingerprints_of_models_differ():
    a, b = golden.student(), golden.student()
    assert fingerprint(a) == fingerprint(b)
    with torch.no_grad():
        b.blocks[1].attn1.to_q.weight.add_(0.01)
    assert fingerprint(a) != fingerprint(b)


@torch.no_grad()
def test_compiled_code_is_the_same_for_every_layer():
    """A layer index inside compiled code would recompile it for each of 30 layers, up to the compiler's limit."""
    graphs = {}
    for layers in (2, 4):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        model = SaltTransformer3DModel(**{**SMALL, "num_layers": layers}).eval()
        text, x = Conditioning(torch.randn(1, 5, 32)), torch.randn(1, 16, 3, 4, 4)
        t = torch.full((1, 3), 500.0)
        memory = model.new_memory(MemoryPolicy("sink", 9, 3), 1, 4, 4)
        call = CausalModel(model)
        expected = call(ModelInput(x, t, text, memory.open(read=3)))
        model.compile_repeated_blocks(backend="eager")
        assert torch.equal(call(ModelInput(x, t, text, memory.open(read=3))), expected)
        call(ModelInput(x, t, text, memory.open(write=3)))
        model(x, t[:, 0], text.text)
        graphs[layers] = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert graphs[2] == graphs[4] > 0
