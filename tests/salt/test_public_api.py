"""The public API: its exact names, their docstrings, and what importing it loads."""

import inspect
import subprocess
import sys

import pytest

import salt

PUBLIC = {
    "CausalModel", "Conditioning", "KVMemory", "LiveSession", "LiveSettings", "MemoryPolicy", "PipelineHost",
    "PromptChange", "PromptSchedule", "RolloutSettings",
    "SaltPipeline", "Schedule", "SeededNoise", "TinyStreamDecoder", "VideoWriter", "WanStreamDecoder", "encode_video",
    "load_memory", "load_student", "rollout", "save_memory", "save_student", "semigroup_defect",
}  # fmt: skip

# What the docstring of each name says at the least: shapes, units, errors and sources, where it has any.
SAID = {
    "CausalModel": ["[B, C, F, H, W]", "[B, F]"],
    "Conditioning": ["[B, L, text_dim]", "[B, N, image_dim]", "[B, C', F, H, W]"],
    "KVMemory": ["latent frame", "ValueError"],
    "LiveSession": ["thread", "InputError", "OSError"],
    "LiveSettings": ["latent frames", "bytes", "InputError"],
    "PipelineHost": ["pixels", "InputError"],
    "MemoryPolicy": ["latent frames", "InputError", "Self Forcing", "LongLive", "Infinity-RoPE"],
    "PromptChange": ["latent frame", "LongLive", "InputError"],
    "PromptSchedule": ["latent frame", "InputError"],
    "RolloutSettings": ["latent frames", "InputError", "2604.03118"],
    "SaltPipeline": [],
    "Schedule": ["(0, 1000]", "InputError", "2604.03118"],
    "SeededNoise": ["[B, C, F, H, W]", "InputError"],
    "TinyStreamDecoder": ["[B, 16, F, H, W]", "[B, 3, T, 8H, 8W]", "[-1, 1]", "ValueError", "TAEHV"],
    "VideoWriter": ["frames per second", "ValueError"],
    "WanStreamDecoder": ["[B, C, F, H, W]", "[B, 3, T, H*s, W*s]", "[-1, 1]", "ValueError"],
    "encode_video": ["[B, 3, T, H, W]", "[B, C,", "[-1, 1]", "ValueError"],
    "load_memory": ["MemoryFileError"],
    "load_student": ["CheckpointError"],
    "rollout": ["[B, C, F', H, W]", "latent frames", "InputError", "2604.03118"],
    "save_memory": ["ValueError", "OSError"],
    "save_student": [".safetensors", "CheckpointError"],
    "semigroup_defect": ["[0, 1000]", "without unit", "InputError", "2604.03118"],
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_public_api_is_exactly_these_names():
    assert set(salt.__all__) == PUBLIC | {"__version__"} and len(salt.__all__) == len(set(salt.__all__))
    assert set(dir(salt)) >= PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'StudentSpec'"):
        salt.StudentSpec  # noqa: B018


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_says_what_it_takes_and_returns(name):
    documented = getattr(salt, name)
    assert not inspect.ismodule(documented) and (inspect.isclass(documented) or inspect.isfunction(documented))
    text = " ".join((inspect.getdoc(documented) or "").split())
    if inspect.isclass(documented):  # the methods of a class are part of what its user reads
        own = [inspect.unwrap(f) for f in vars(documented).values() if inspect.isfunction(f)]
        text += " ".join(" ".join((f.__doc__ or "").split()) for f in own if not f.__name__.startswith("_"))
    assert len(text) > 40 and [part for part in SAID[name] if part not in text] == []


def test_importing_salt_loads_no_library():
    loaded = "{m.split('.')[0] for m in sys.modules} & {'torch', 'diffusers', 'transformers', 'numpy'}"
    assert run(f"import sys, salt; print({loaded})") == "set()"


def test_the_rollout_loads_neither_diffusers_nor_torch_s_compiler():
    """A host that brings its own model pays for neither."""
    names = "rollout, RolloutSettings, Schedule, KVMemory, MemoryPolicy, SeededNoise, PromptSchedule, semigroup_defect"
    heavy = "[m for m in ('diffusers', 'transformers', 'torch._dynamo', 'torch._inductor') if m in sys.modules]"
    assert run(f"import sys\nfrom salt import {names}\nprint({heavy})") == "[]"


@pytest.mark.parametrize(
    "imports",
    [
        "from salt import rollout, semigroup_defect",
        "import salt.rollout, salt.semigroup_defect\nfrom salt import rollout, semigroup_defect",
        "from salt.rollout import RolloutSettings\nimport salt.semigroup_defect\n"
        "from salt import semigroup_defect, rollout",
        "import salt\nrollout = salt.rollout\nfrom salt.rollout import rollout_from\nassert salt.rollout is rollout\n"
        "import salt.semigroup_defect\nsemigroup_defect = salt.semigroup_defect",
    ],
)
def test_functions_are_not_hidden_by_the_modules_of_their_names(imports):
    check = (
        "import sys\n"
        "assert rollout is sys.modules['salt.rollout'].rollout\n"
        "assert semigroup_defect is sys.modules['salt.semigroup_defect'].semigroup_defect\n"
        "from salt.rollout import RolloutSettings\n"
        "from salt.semigroup_defect import TRIPLES\n"
        "print(rollout.__name__, semigroup_defect.__name__)"
    )
    assert run(f"{imports}\n{check}") == "rollout semigroup_defect"
