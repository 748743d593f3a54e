"""Which encoder a source video passes through: the pipeline's VAE, or TAEHV by choice."""

import numpy as np
import pytest
import torch

from salt.cli import main
from salt.errors import InputError
from salt.io.video import VideoWriter
from salt.live.pipeline_host import PipelineHost
from salt.live.video_feed import FilePictures
from salt.models.taehv import TinyDecoder
from salt.models.taehv_encoder import TinyEncoder, TinyStreamEncoder, load_taehv_encoder
from tests.helpers import families, tiny_system

PROMPT = "a red circle moving right"


@pytest.fixture(scope="module")
def taehv(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("taehv") / "taew2_1.pth"
    torch.save({**TinyDecoder().state_dict(), **TinyEncoder().state_dict()}, path)
    return path


def test_a_source_video_is_encoded_by_the_encoder_that_was_chosen(taehv, tmp_path, monkeypatch, capsys):
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    pipe = tiny_system.pipeline()
    copied = {"video": frames, "strength": 0.0, "seed": 0, "output_type": "latent"}
    wan = pipe(PROMPT, **copied).latents
    pipe.set_encoder(taehv)
    expected = TinyStreamEncoder(load_taehv_encoder(taehv)).encode(pixels)
    found = pipe(PROMPT, **copied).latents
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, wan, atol=1e-2)
    with VideoWriter(tmp_path / "in.mp4", 16) as video:
        video.write(torch.from_numpy(frames))
    feed = PipelineHost(pipe).new_feed(FilePictures(tmp_path / "in.mp4"))
    assert isinstance(feed.encoder, TinyStreamEncoder)
    pipe.set_encoder("wan")
    assert torch.equal(pipe(PROMPT, **copied).latents, wan)
    pipe.save_pretrained(tmp_path / "pipe")
    command = ["generate", PROMPT, "--model", str(tmp_path / "pipe"), "--encoder", str(taehv), "--nfe", "2"]
    assert main([*command, "--video", str(tmp_path / "in.mp4"), "-o", str(tmp_path / "out.mp4")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("video encoded by TAEHV")
    assert main([*command, "-o", str(tmp_path / "none.mp4")]) == 2
    assert "--encoder has no effect without --video" in capsys.readouterr().err
    assert not (tmp_path / "none.mp4").exists()


def test_what_does_not_go_together_says_why(taehv, tmp_path):
    pipe = families.pipeline("longlive2", tmp_path)
    with pytest.raises(InputError, match="TAEHV has Wan 2.1's 16 latent channels, and this model 48") as error:
        pipe.set_encoder(taehv)
    assert error.value.field == "encoder"
    pipe = tiny_system.pipeline()
    memory = pipe(PROMPT, num_frames=9, output_type="latent").memory
    with pytest.raises(InputError, match="video cannot be combined with `memory`: a video is encoded from its own"):
        pipe(PROMPT, video=np.zeros((9, 32, 32, 3), np.uint8), memory=memory)
