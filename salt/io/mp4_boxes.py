"""The boxes of a fragmented mp4 with one H.264 track (ISO/IEC 14496-12 and -15): its beginning, and a fragment a frame.

Every frame lasts equally long, so that a frame can be written as soon as it is encoded.
"""

from __future__ import annotations

import struct

# Sample flags: of a frame that a player can begin at, and of one that needs those before it.
SYNC, DEPENDS = 0x02000000, 0x01010000
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # neither turned nor scaled


def beginning(width: int, height: int, configuration: bytes, timescale: int) -> bytes:
    """ftyp and moov of a video in BT.709. configuration: the decoder's (avcC). timescale: ticks in a second."""
    entry = struct.pack(">6xH16x2H2I4xH", 1, width, height, 0x480000, 0x480000, 1) + bytes(32)
    entry += struct.pack(">2H", 24, 0xFFFF)
    colour = _box(b"colr", b"nclx", struct.pack(">3HB", 1, 1, 1, 0))
    sample = _box(b"avc1", entry, _box(b"avcC", configuration), colour, _box(b"pasp", struct.pack(">2I", 1, 1)))
    table = _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1), sample),
        *(_full(kind, bytes(size)) for kind, size in ((b"stts", 4), (b"stsc", 4), (b"stsz", 8), (b"stco", 4))),
    )
    data = _box(b"dinf", _full(b"dref", struct.pack(">I", 1), _full(b"url ", flags=1)))
    media = _box(
        b"mdia",
        _full(b"mdhd", struct.pack(">4I2H", 0, 0, timescale, 0, 0x55C4, 0)),
        _full(b"hdlr", bytes(4), b"vide", bytes(12), b"VideoHandler\0"),
        _box(b"minf", _full(b"vmhd", bytes(8), flags=1), data, table),
    )
    track = struct.pack(">5I8x4H", 0, 0, 1, 0, 0, 0, 0, 0, 0) + _MATRIX + struct.pack(">2I", width << 16, height << 16)
    movie = struct.pack(">4I", 0, 0, 1000, 0) + struct.pack(">IH10x", 0x10000, 0x100) + _MATRIX
    return _box(b"ftyp", b"iso5", struct.pack(">I", 512), b"iso5iso6avc1mp41") + _box(
        b"moov",
        _full(b"mvhd", movie, bytes(24), struct.pack(">I", 2)),
        _box(b"trak", _full(b"tkhd", track, flags=3), media),
        _box(b"mvex", _full(b"trex", struct.pack(">5I", 1, 1, 0, 0, 0))),
    )


def fragment(frame: bytes, number: int, ticks: int, key: bool) -> bytes:
    """moof and mdat of one frame, which lasts `ticks`. number: of the frame in the video, from 0."""

    def moof(data_at: int) -> bytes:
        sample = struct.pack(">IiIII", 1, data_at, ticks, len(frame), SYNC if key else DEPENDS)
        track = _full(b"tfhd", struct.pack(">I", 1), flags=0x020000)  # offsets count from this moof
        track += _full(b"tfdt", struct.pack(">Q", number * ticks), version=1)
        track += _full(b"trun", sample, flags=0x000701)  # offset of the data; duration, size and flags of the frame
        return _box(b"moof", _full(b"mfhd", struct.pack(">I", number + 1)), _box(b"traf", track))

    return moof(len(moof(0)) + 8) + _box(b"mdat", frame)


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full(kind: bytes, *content: bytes, flags: int = 0, version: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *content)
