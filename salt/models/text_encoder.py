"""Text encoders: Wan's UMT5, and a cache of embeddings on disk. salt-tiny's is `salt.models.word_embedder`.

Layout: embeddings [B, L, D], zero padded after a prompt's last token.
"""

from __future__ import annotations

import hashlib
import html
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import ftfy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..io.atomic import write_tensors
from ..io.content import content_key, path_digest
from ..io.fields import read_object
from ..io.model_folders import ModelFolderError, check_config, check_model_folder
from .tokenizer import TokenizerError, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, UMT5EncoderModel

log = logging.getLogger(__name__)

TOKEN_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor; files hold either name or both
# What an UMT5's config.json must be like, as far as shapes depend on it.
CONFIG_DEFAULTS = {
    **dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"), 1),
    **dict.fromkeys(("relative_attention_num_buckets", "relative_attention_max_distance"), 1),
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}
TOKENS = 512  # Wan 2.1's text length
MAX_TOKENS = 2**16  # of a cached embedding
TextPrecision = Literal["bf16", "int8"]


class TextEncoder(Protocol):
    """Encodes prompts to embeddings [B, max_length, dim]."""

    @property
    def dim(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    def encode(self, prompts: list[str]) -> Tensor: ...


def clean(prompt: str) -> str:
    """A prompt as Wan normalises it: encoding repaired, HTML entities (also nested) resolved, single spaces."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


class UMT5TextEncoder:
    """Wan 2.1's text encoder: transformers' `UMT5EncoderModel` with its tokenizer.

    Every prompt is padded to `max_length` tokens for the encoder; embeddings after its own last token are zeroed, as in
    Wan's training. device: where to compute; token embeddings stay where the model is, and its blocks are moved to the
    device and back one after another (None: all of it stays).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = TOKENS,
        device: torch.device | str | None = None,
    ) -> None:
        tie_embeddings(model)
        self.model, self.tokenizer, self.max_length, self.device = model, tokenizer, max_length, device

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, precision: TextPrecision = "bf16", device: torch.device | str | None = None
    ) -> UMT5TextEncoder:
        """From a diffusers folder with `text_encoder/` and `tokenizer/`; the model is loaded to the CPU.

        precision `int8` stores the linear layers' weights in 8 bits (through torchao; 6.7 instead of 11.4 GB).
        Raises FileNotFoundError when the folder lacks them, ValueError when its weights are incomplete, and when `int8`
        needs torchao and it is missing, TokenizerError for a tokenizer that cannot be read or has other tokens.
        """
        from transformers import UMT5EncoderModel

        folder = Path(folder)
        for part in ("text_encoder", "tokenizer"):
            if not (folder / part).is_dir():
                raise FileNotFoundError(f"{folder} has no folder {part}/, which Wan's text encoder needs")
            check_model_folder(folder / part)
        check_config(folder / "text_encoder" / "config.json", CONFIG_DEFAULTS)
        tokenizer = load_tokenizer(folder / "tokenizer")
        if not (folder / "text_encoder" / "config.json").is_file():
            raise FileNotFoundError(f"{folder / 'text_encoder'}: found no config.json, expected UMT5's")
        try:
            model = UMT5EncoderModel.from_pretrained(
                folder / "text_encoder", dtype=torch.bfloat16, trust_remote_code=False, use_safetensors=True
            )
        except RuntimeError as error:
            if "mismatched_sizes" not in str(error):
                raise
            # transformers reports the names in the log.
            raise ModelFolderError(f"{folder / 'text_encoder'}: its weights do not fit its config.json") from error
        _check_complete(model, folder / "text_encoder")
        if precision == "int8":
            quantise(model)
        if len(tokenizer) > model.config.vocab_size:
            raise TokenizerError(
                f"{folder / 'tokenizer'}: found {len(tokenizer)} tokens, expected at most the text encoder's "
                f"{model.config.vocab_size}"
            )
        return cls(model.eval(), tokenizer, device=device)

    @property
    def dim(self) -> int:
        return self.model.config.d_model

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, max_length, dim] in the model's dtype, on the computing device. Longer prompts are cut.

        Raises ValueError for embeddings that are not finite.
        """
        tokens = self.tokenizer(
            [clean(p) for p in prompts],
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids_BL, mask_BL = tokens.input_ids, tokens.attention_mask
        before: torch.device = self.model.device
        device = before if self.device is None else torch.device(self.device)
        if device == before or hasattr(self.model, "_hf_hook"):  # accelerate's offloading moves model and inputs itself
            mask_BL = mask_BL.to(before)
            x_BLD = self.model(ids_BL.to(before), mask_BL).last_hidden_state
        else:
            mask_BL = mask_BL.to(device)
            embedded_BLD = self.model.get_input_embeddings()(ids_BL.to(before)).to(device)
            with one_at_a_time(self._modules(), device, before):
                x_BLD = self.model(inputs_embeds=embedded_BLD, attention_mask=mask_BL).last_hidden_state
        x_BLD = torch.where(mask_BL[:, :, None].bool(), x_BLD, 0)
        if not x_BLD.isfinite().all():
            raise ValueError(
                f"text encoder: found embeddings that are not finite for {prompts[0][:80]!r}, expected numbers "
                f"(weights in {x_BLD.dtype}; are its files complete?)"
            )
        return x_BLD

    def _modules(self) -> list[nn.Module]:
        """What computes after the token embeddings, in order."""
        encoder = self.model.get_submodule("encoder")
        return [*encoder.get_submodule("block").children(), encoder.get_submodule("final_layer_norm")]


@contextmanager
def one_at_a_time(modules: Sequence[nn.Module], device: torch.device, before: torch.device) -> Iterator[None]:
    """Within it each module is copied to `device` for its forward; after it, it has its weights on `before` again.

    The device holds one of them at a time. Weights are not copied back, as a forward does not change them.
    """
    kept: dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter, Tensor]]] = {}

    def fetch(module: nn.Module, _: object) -> None:
        kept[module] = [
            (owner, name, weight, weight.data)
            for owner in module.modules()
            for name, weight in owner.named_parameters(recurse=False)
        ]
        nn.Module.to(module, device)

    def put_back(module: nn.Module, *_: object) -> None:
        for owner, name, weight, data in kept.pop(module, ()):
            setattr(owner, name, weight)  # `Module.to` may have put another parameter in its place
            if weight.device != before and not is_traceable_wrapper_subclass(weight):
                weight.data = data
        nn.Module.to(module, before)  # buffers, and weights of several tensors (quantised ones), which are copied

    hooks = [m.register_forward_pre_hook(fetch) for m in modules]
    hooks += [m.register_forward_hook(put_back) for m in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules:  # the one that was interrupted
            put_back(module)


def tie_embeddings(model: PreTrainedModel) -> None:
    """Give a UMT5 encoder the token embeddings of its files. They are stored once, as `shared`; transformers 5.0 to 5.2
    leaves the copy that the encoder reads at its initial values."""
    from transformers import UMT5EncoderModel

    if isinstance(model, UMT5EncoderModel) and model.encoder.embed_tokens.weight is not model.shared.weight:
        model.encoder.embed_tokens = model.shared


def _check_complete(model: UMT5EncoderModel, folder: Path) -> None:
    """Raise ValueError where safetensors files lack weights of the model, which transformers fills with random ones."""
    stored: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored |= set(file.keys())
    if TOKEN_EMBEDDINGS[0] not in stored and TOKEN_EMBEDDINGS[1] in stored:
        model.shared = model.encoder.embed_tokens
    missing = sorted(
        set(model.state_dict()) - stored - ({*TOKEN_EMBEDDINGS} if {*TOKEN_EMBEDDINGS} & stored else set())
    )
    if stored and missing:
        raise ValueError(
            f"{folder}: found no {missing[0]} ({len(missing)} weights are missing), expected all of UMT5's"
        )


def quantise(model: torch.nn.Module) -> None:
    """Linear weights to int8 with one scale per output channel, in place. Raises ValueError without torchao."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("text precision int8 needs torchao (pip install torchao)") from error
    quantize_(model, Int8WeightOnlyConfig())


def umt5_key(folder: str | Path) -> str:
    """A hash of the files that embeddings come from, by content; "" where the folder has no text encoder."""
    parts = [path_digest(Path(folder) / part) for part in ("text_encoder", "tokenizer")]
    return content_key(parts) if all(parts) else ""


def umt5_width(folder: str | Path) -> int | None:
    """The width of a folder's embeddings, where its configuration says it. Raises ModelFolderError for a bad one."""
    config = Path(folder) / "text_encoder" / "config.json"
    check_config(config, CONFIG_DEFAULTS)
    return read_object(config).get("d_model") if config.is_file() else None


class CachedTextEncoder:
    """Embeddings of another encoder, cached in a folder: one safetensors file per prompt.

    load: returns the encoder; called once, for the first prompt that is not in the folder. key: in the files' names, so
    that encoders can share a folder. content: `umt5_key` of the encoder where it is known; it is stored with an
    embedding. width: of its embeddings, where it is known.
    A file that is damaged, has another shape or was made by other weights is said, and encoded and written anew.
    """

    def __init__(
        self,
        load: Callable[[], TextEncoder],
        folder: str | Path,
        key: str,
        content: str = "",
        width: int | None = None,
    ) -> None:
        self._load = load
        self._encoder: TextEncoder | None = None
        self.folder, self.key, self.content, self.width = Path(folder), key, content, width
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder}: found a file, expected a folder for embeddings")
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def inner(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    def encode(self, prompts: list[str]) -> Tensor:
        """[B, max_length, dim] on the CPU."""
        found = {p: self._read(p) for p in dict.fromkeys(prompts)}
        new = [p for p, x in found.items() if x is None]
        if new:
            for prompt, x_LD in zip(new, self.inner.encode(new).cpu(), strict=True):
                self._write(prompt, x_LD)
                found[prompt] = x_LD
        return torch.stack([x for p in prompts if (x := found[p]) is not None])

    def path(self, prompt: str) -> Path:
        digest = hashlib.sha256("\0".join([self.key, clean(prompt)]).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def fault(self, prompt: str) -> str:
        """Why a prompt's file cannot be used; empty where it can, or where there is none."""
        path = self.path(prompt)
        if not path.is_file():
            return ""
        try:
            with safe_open(path, "pt") as file:
                names, metadata = set(file.keys()), file.metadata() or {}
                shape = file.get_slice("embedding").get_shape() if "embedding" in names else []
                length = int(file.get_tensor("length")) if "length" in names else 0
        except (SafetensorError, FileNotFoundError, ValueError, RuntimeError):  # of a length that is no number
            return "is damaged"
        if len(shape) != 2 or self.width not in (None, shape[1]) or not shape[0] <= length <= MAX_TOKENS:
            return f"has other shapes ({shape} of {length} tokens)"
        if self.content and metadata.get("key") != self.content:
            return "was made by another text encoder"
        return ""

    def _read(self, prompt: str) -> Tensor | None:
        path = self.path(prompt)
        if reason := self.fault(prompt):
            log.warning("%s: %s; made anew", path, reason)
        if reason or not path.is_file():
            return None
        tensors = load_file(path)
        kept_LD, length = tensors["embedding"], int(tensors["length"])
        return torch.cat([kept_LD, kept_LD.new_zeros(length - kept_LD.shape[0], kept_LD.shape[1])])

    def _write(self, prompt: str, x_LD: Tensor) -> None:
        used = x_LD.abs().amax(dim=1).nonzero()
        kept = x_LD[: int(used.max()) + 1 if len(used) else 0].contiguous()
        tensors = {"embedding": kept, "length": torch.tensor(x_LD.shape[0])}
        write_tensors(self.path(prompt), tensors, {"key": self.content} if self.content else {})
