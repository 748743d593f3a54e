"""The error of a setting or argument that cannot be used: which field it is about, apart from what is wrong with it."""

from __future__ import annotations


class InputError(ValueError):
    """A field that cannot be used as it was given.

    field: the name that the engine's Python calls it (`guidance_scale`). problem: the rest of the sentence, without the
    name: `is not supported by bidirectional models`, or `found 80, expected 81 or 93`. value: shown behind the name
    where it is part of the sentence: `guidance_scale=3.0 needs a negative prompt`.

    `str(error)` is the sentence in the engine's names. A host that calls the field otherwise (a widget, a socket, an
    option of the command line) says `error.phrased("cfg")`, and need not take the text apart.
    """

    def __init__(self, field: str, problem: str, value: object = None) -> None:
        self.field, self.problem, self.value = field, problem, value
        super().__init__(self.phrased(field))

    def phrased(self, name: str) -> str:
        """The sentence with the field called `name`."""
        if self.value is not None:
            name = f"{name}={self.value!r}"
        return f"{name}: {self.problem}" if self.problem.startswith("found ") else f"{name} {self.problem}"
