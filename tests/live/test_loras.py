"""LoRAs of a live session: strengths and swaps between blocks, recaches, rewinds and replays, to the bit."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salt.cli import main
from salt.errors import InputError
from salt.live.adapters import LoraStrength
from salt.live.controls import Loras, Prompt, Rewind
from salt.live.engine import LiveEngine
from salt.live.pipeline_host import PipelineHost
from salt.live.replay import play, read_replay, replay_engine, replay_of
from salt.live.result import result_of
from salt.live.session import LiveSession
from salt.live.settings import LiveSettings
from salt.models.fingerprint import fingerprint
from salt.pipeline import SaltPipeline
from salt.pipeline.lora import adapter_state, adapter_strengths
from salt.pipeline.named_loras import NamedLora
from tests.helpers import tiny_system

START = LiveSettings("a red circle moving right", nfe=2, pace="free", policy="sink:3,window:9")


def lora_file(path: Path, seed: int) -> Path:
    """Self- and cross-attention of both layers: keys and values of the prompt change as well."""
    torch.manual_seed(seed)
    tensors = {}
    for layer in ("blocks.0.attn1.to_q", "blocks.1.attn2.to_k", "blocks.1.attn2.to_v"):
        width = 32
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(2, width)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(width, 2)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {name: lora_file(folder / f"{name}.safetensors", seed) for seed, name in enumerate(("ink", "clay"))}


def with_loras(files: dict[str, Path], **strengths: float) -> SaltPipeline:
    pipe = tiny_system.pipeline()
    for name, file in files.items():
        pipe.load_lora_weights(file, adapter_name=name)
    pipe.set_adapters([*strengths], [*strengths.values()]) if strengths else pipe.disable_lora()
    return pipe


@pytest.fixture(scope="module")
def host(files: dict[str, Path]) -> PipelineHost:
    return PipelineHost(with_loras(files))


def lora(recache: bool = False, **strengths: float) -> Loras:
    return Loras(tuple(LoraStrength(name, strength) for name, strength in strengths.items()), recache)


def made(host: PipelineHost, blocks: int, at: dict[int, list] | None = None, settings=START):
    """An engine after `blocks` blocks, controls applied before those of their numbers; and the blocks' latents."""
    engine, waiting = LiveEngine(host, settings, decodes=False), dict(at or {})

    def gate() -> bool:
        for control in waiting.pop(engine.made, []):
            engine.apply(control)
        return engine.made < blocks

    return engine, [block.latents for block in engine.blocks(gate)]


def test_adapters_act_from_their_block_on_and_swapping_back_restores_the_bits(host, files):
    _, plain = made(host, 3)
    engine, swapped = made(host, 5, {1: [lora(ink=0.7)], 2: [lora(clay=1.0), Rewind(0.0)], 3: [lora()]})
    assert torch.equal(swapped[0], plain[0]) and not torch.equal(swapped[1], plain[1])
    # The rewind to the beginning restored what was steered to there: no LoRA.
    assert torch.equal(swapped[2], plain[0])
    assert torch.equal(swapped[3], plain[1]) and torch.equal(swapped[4], plain[2])
    one = PipelineHost(with_loras({"ink": files["ink"]}, ink=0.7))
    assert [(x.name, x.strength) for x in one.info.loras] == [("ink", 0.7)]
    _, alone = made(one, 2)
    _, begun = made(
        host, 2, settings=LiveSettings(START.prompt, nfe=2, policy=START.policy, loras=lora(ink=0.7).adapters)
    )
    assert all(torch.equal(a, b) for a, b in zip(alone, begun, strict=True))
    assert not torch.equal(alone[0], plain[0])


def test_a_recache_encodes_the_window_again_with_the_adapters(host):
    _, kept = made(host, 3, {2: [lora(ink=0.7)]})
    engine, again = made(host, 3, {2: [lora(True, ink=0.7)]})
    assert not torch.equal(kept[2], again[2]) and torch.equal(kept[1], again[1])
    assert [c.choice.switch for c in engine.branch.changes] == ["keep", "recache", "keep"][: len(engine.branch.changes)]
    # As a prompt's recache at the same block does; and a cut is stronger.
    _, prompted = made(host, 3, {2: [lora(ink=0.7), Prompt.of(START.prompt, "recache")]})
    assert torch.equal(prompted[2], again[2])
    engine, _ = made(host, 3, {2: [lora(True, ink=0.7), Prompt.of(START.prompt, "cut")]})
    assert engine.branch.changes[1].choice.switch == "cut"


@pytest.mark.parametrize("seed", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_replay_makes_the_same_latents(host, files, tmp_path, seed):
    rng, at = random.Random(seed), {}
    for block in range(1, 14):
        strengths = {name: rng.choice((0.0, 0.4, 1.2)) for name in ("ink", "clay")}
        controls = [lora(rng.random() < 0.5, **strengths)] if rng.random() < 0.7 else []
        at[block] = controls + [Rewind(rng.uniform(0, block / 2) * 0)] * (block in (6, 10))
    engine, latents = made(host, 14, at)
    replay_of(engine).save(tmp_path / "session.json")
    replay = read_replay(tmp_path / "session.json")
    assert replay == replay_of(engine)
    other = PipelineHost(with_loras(files, clay=0.3))  # what acts before does not matter
    again = replay_engine(other, replay)
    played = [block.latents for block in play(again, replay)]
    assert all(torch.equal(a, b) for a, b in zip(played, latents, strict=True))
    with pytest.raises(InputError, match="is another one than the replay was made with"):
        replay_engine(PipelineHost(tiny_system.pipeline()), replay)


def test_memories_belong_to_the_adapters_that_they_were_written_with_last(host, files):
    engine, _ = made(host, 2, {1: [lora(ink=0.5)]})
    result = result_of(engine, None)
    assert result.memory.fingerprint == fingerprint(with_loras(files, ink=0.5).transformer)
    assert result.also_changed == ("loras",)
    assert result_of(made(host, 2, {1: [lora(ink=0.5)], 2: [lora()]})[0], None).memory.fingerprint.endswith("LoRA ink")
    plain = result_of(made(host, 1)[0], None).memory
    assert plain.fingerprint == fingerprint(tiny_system.pipeline().transformer)


def test_adapters_that_are_set_while_a_clip_is_made(files):
    """`set_adapters` and `disable_lora` between two calls of the model, as after a step."""
    pipe = with_loras(files)
    words = START.prompt

    def act(strength: float) -> None:
        pipe.enable_lora()
        pipe.set_adapters("ink", strength)

    def latents(change=None):
        pipe.disable_lora()
        steps = []

        def after_step(pipe, step, timestep, tensors):
            steps.append(step)
            if change is not None:
                change(len(steps))
            return tensors

        made = pipe(
            words, num_frames=33, num_inference_steps=2, output_type="latent", callback_on_step_end=after_step,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return made.frames, made.memory

    plain, memory = latents()
    swapped, other = latents(lambda n: act(0.5) if n == 2 else None)
    assert torch.equal(plain[:, :, :3], swapped[:, :, :3]) and not torch.equal(plain[:, :, 3:], swapped[:, :, 3:])
    assert other.fingerprint == fingerprint(with_loras(files, ink=0.5).transformer) != memory.fingerprint
    twice = {2: lambda: act(0.5), 3: lambda: pipe.disable_lora()}
    _, back = latents(lambda n: twice[n]() if n in twice else None)
    assert back.fingerprint == memory.fingerprint
    states = {adapter_state(pipe.transformer), (act(0.5), adapter_state(pipe.transformer))[1]}
    assert len(states) == 2, "what a CUDA graph holds for"
    assert torch.equal(latents()[0], plain)


def test_what_is_refused(host, files):
    session = LiveSession(host, START)
    with pytest.raises(InputError, match=r"^adapters: found oil, expected ink, clay$"):
        session.send(lora(oil=1.0))
    assert [(x.name, x.strength) for x in session.state().loras] == [("ink", 0.0), ("clay", 0.0)]
    session.send(lora(ink=-0.5))
    plain = LiveSession(PipelineHost(tiny_system.pipeline()), START)
    with pytest.raises(InputError, match="adapters: found ink, and no LoRA is loaded"):
        plain.send(lora(ink=1.0))
    with pytest.raises(InputError, match="adapters: found ink twice"):
        Loras((LoraStrength("ink"), LoraStrength("ink", 0.5)))
    with pytest.raises(InputError, match="loras: found oil, expected ink, clay"):
        LiveEngine(host, LiveSettings("a red circle", loras=lora(oil=1.0).adapters))
    with pytest.raises(InputError, match="strength: found nan for ink"):
        LoraStrength("ink", float("nan"))
    pipe = with_loras(files, ink=1.0)
    pipe.transformer.get_submodule("blocks.0.attn1.to_q").set_scale("ink", 0.5)
    with pytest.raises(InputError, match="lora: found several strengths of the adapter ink"):
        PipelineHost(pipe)
    fused = with_loras(files, ink=0.5)
    fused.fuse_lora()
    assert adapter_strengths(fused.transformer) == {} and PipelineHost(fused).info.loras == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ink=a.safetensors", ("ink", "a.safetensors", 1.0)),
        ("ink=a.safetensors:-0.5", ("ink", "a.safetensors", -0.5)),
        ("ink=a.safetensors:0", ("ink", "a.safetensors", 0.0)),
        ("a.safetensors:0.5", None),
    ],
)
def test_a_name_on_the_command_line(text, expected):
    named = NamedLora.parse(text)
    assert (named and (named.name, named.path, named.strength)) == expected


def test_the_command_line_names_adapters(files, tmp_path, capsys):
    folder = tiny_system.folder(tmp_path / "model")
    options = [f"--lora=ink={files['ink']}:0.5", f"--lora=clay={files['clay']}", "--model", str(folder)]
    pipe = with_loras(files, ink=0.5)
    engine, _ = made(PipelineHost(pipe), 2, {1: [lora(clay=1.0)]})
    replay_of(engine).save(tmp_path / "session.json")
    assert main(["replay", str(tmp_path / "session.json"), *options]) == 0
    assert "2 blocks made" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "session.json"), "--model", str(folder)]) == 2
    assert "another one than the replay" in capsys.readouterr().err
    for wrong, message in (
        (["replay", str(tmp_path / "session.json"), *options, options[0]], "--lora: found the name ink twice"),
        (["replay", str(tmp_path / "session.json"), "--lora", f"an ink={files['ink']}"], "found the name 'an ink'"),
        (["generate", "a red circle", *options], "--lora: found the name ink, which `salt live` takes"),
        (["convert", str(folder), str(tmp_path / "out"), options[0]], "found the name ink"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
