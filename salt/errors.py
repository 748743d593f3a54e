"""The error of an invalid setting or argument, which carries the field's name apart from the problem; and others."""

from __future__ import annotations


class InputError(ValueError):
    """A setting or argument that is invalid, or that does not go with the others.

    field: its name in the engine's Python (`guidance_scale`). problem: the rest of the sentence, without the name:
    `is not supported by bidirectional models`, or `found 80, expected 81 or 93`. value: shown after the name where it
    is part of the sentence: `guidance_scale=3.0 needs a negative prompt`.

    `str(error)` is the sentence with the engine's name. A host with another name for the field (a widget, a socket, a
    command-line option) uses `error.phrased("cfg")` instead of parsing the text.
    """

    # ComfyUI shows this name; its own begins with the path of the pack.
    __module__ = "salt.errors"

    def __init__(self, field: str, problem: str, value: object = None) -> None:
        self.field, self.problem, self.value = field, problem, value
        super().__init__(self.phrased(field))

    def phrased(self, name: str) -> str:
        """The sentence with the field called `name`."""
        if self.value is not None:
            name = f"{name}={self.value!r}"
        return f"{name}: {self.problem}" if self.problem.startswith("found ") else f"{name} {self.problem}"


class DeviceMemoryError(RuntimeError):
    """The device ran out of memory; the message says what would fit it. Blocks that were finished have been yielded."""

    __module__ = "salt.errors"
