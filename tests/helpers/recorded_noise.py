"""Noise that a reference implementation drew, as a noise source. Needs only torch: tests in ComfyUI load it too."""

from torch import Tensor


class RecordedNoise:
    """Recordings: initial [B, C, F, H, W] and renoise [steps - 1, B, C, F, H, W].

    offset: latent frame at which the recordings start.
    """

    seeds: tuple[int, ...] = ()

    def __init__(self, initial: Tensor, renoise: Tensor, offset: int = 0) -> None:
        self.initial, self.renoise, self.offset = initial, renoise, offset

    def __call__(self, start: int, frames: int, draw: int) -> Tensor:
        source = self.initial if draw == 0 else self.renoise[draw - 1]
        first = start - self.offset
        assert 0 <= first and first + frames <= source.shape[2], f"frames {first} to {first + frames} are not recorded"
        return source[:, :, first : first + frames]
