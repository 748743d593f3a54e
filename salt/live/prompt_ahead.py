"""The texts of prompts, encoded by a thread beside the rollout, so that no block waits for a text encoder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic

from ..errors import InputError
from ..io.printable import one_line
from ..model_input import Condition
from .controls import Control, Prompt
from .prompt_blend import Conditionings

EncodeBeside = Callable[[str], Callable[[], Condition]]


class PromptAhead(Generic[Condition]):
    """Encodes what was sent last; a text that is superseded before its turn is not encoded.

    encode: `LiveModel.encode_beside`; None where texts are encoded in turn, and every prompt is ready at once.
    on_ready: called by the thread when a text is encoded.
    """

    def __init__(
        self,
        encode: EncodeBeside[Condition] | None,
        conditionings: Conditionings[Condition],
        on_ready: Callable[[], None],
    ) -> None:
        self.encode, self.conditionings, self.on_ready = encode, conditionings, on_ready
        self._changed = threading.Condition()
        self._wanted: list[str] = []
        self._encoded: dict[str, Callable[[], Condition]] = {}  # not taken by the thread that makes blocks yet
        self._faults: dict[str, str] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def begin(self, control: Control) -> None:
        """Called when a control is sent."""
        if self.encode is None or not isinstance(control, Prompt):
            return
        texts = texts_of(control)
        with self._changed:
            self._encoded = {text: encoded for text, encoded in self._encoded.items() if text in texts}
            self._faults.clear()  # one more try
            self._wanted = [text for text in texts if not self._has(text)]
            if self._wanted and self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._run, args=(self.encode,), name="salt-live-text", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def is_ready(self, control: Control) -> bool:
        """Whether a control can be applied without waiting for a text."""
        if self.encode is None or not isinstance(control, Prompt):
            return True
        with self._changed:
            return all(self._has(text) or text in self._faults for text in texts_of(control))

    def hand_over(self, control: Control) -> None:
        """Give what was encoded to the conditionings, when a control that is ready is applied.

        Raises InputError for a prompt that could not be encoded.
        """
        if self.encode is None or not isinstance(control, Prompt):
            return
        for text in texts_of(control):
            with self._changed:
                fault, encoded = self._faults.get(text), self._encoded.pop(text, None)
            if encoded is not None:
                self.conditionings.add(text, encoded())
            elif fault is not None:
                raise InputError("prompt", f"cannot be encoded: {fault}")

    def close(self) -> None:
        """Encode nothing more, and wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _has(self, text: str) -> bool:
        return text in self._encoded or self.conditionings.has(text)

    def _run(self, encode: EncodeBeside[Condition]) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                text = self._wanted[0]
            encoded, fault = None, ""
            try:
                encoded = encode(text)
            except (ValueError, OSError, RuntimeError) as error:
                fault = one_line(error)
            with self._changed:
                if encoded is not None:
                    self._encoded[text] = encoded
                else:
                    self._faults[text] = fault
                self._wanted = [other for other in self._wanted if other != text]
            self.on_ready()


def texts_of(control: Prompt) -> list[str]:
    return [prompt.text for prompt in control.prompts]
