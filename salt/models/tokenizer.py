"""Loads the tokenizer of a folder; what the libraries refuse is said in one line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..io.fields import FieldError, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAST, SENTENCEPIECE = "tokenizer.json", "spiece.model"
MAX_REASON = 200  # characters of a library's message, which may quote the file
PIECES_FIELD = b"\n"  # a SentencePiece model is a protobuf message whose first field is its list of pieces


class TokenizerError(ValueError):
    """A tokenizer that is not read: the message names the file, what was found and what is expected."""

    __module__ = "salt.models.tokenizer"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises TokenizerError for files that are missing, damaged or of another kind."""
    from transformers import AutoTokenizer

    files = [folder / name for name in (FAST, SENTENCEPIECE) if (folder / name).is_file()]
    if not files:  # transformers would make an empty one
        raise TokenizerError(f"{folder}: found neither {FAST} nor {SENTENCEPIECE}, expected a tokenizer")
    for path in sorted(folder.glob("*.json")):
        try:
            read_object(path)
        except (FieldError, OSError) as error:
            raise TokenizerError(f"{path}: {error}") from None
    if files[-1].name == SENTENCEPIECE:
        with files[-1].open("rb") as file:
            if file.read(1) != PIECES_FIELD:
                raise TokenizerError(f"{files[-1]}: found no SentencePiece model, expected one")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library raises plain `Exception`, and transformers whatever a wrong value leads to.
        reason = str(error).strip().partition("\n")[0][:MAX_REASON]
        where = files[0] if type(error) is Exception else folder
        raise TokenizerError(f"{where}: transformers cannot read this tokenizer: {reason}") from error
