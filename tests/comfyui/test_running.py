"""Rollouts into a file, ended early, and gone on with after a change: what comes out is as if nothing had happened."""

CASES = "running"


def test_a_rollout_into_a_file_has_the_frames_of_salt_decode(inside):
    found = inside(CASES, "video")
    assert found["equal"] and found["alone"] and found["started"] and found["memory"]
    assert found["video"] == [33, [64, 64]] and found["blocks"] == [9, 12, 12]
    assert found["goes on"] <= 1 and found["more"] == 36, "without a seam, by latents that were normalised twice"
    assert found["files"] == [f"video/clip_0000{n}_.mp4" for n in (1, 2, 3, 4)]
    assert found["report"].startswith("/video/clip_00001_.mp4: 33 frames, first after ")


def test_cancel_and_stop_leave_a_file_that_plays(inside):
    found = inside(CASES, "ended_early")
    assert found["cancelled"] == "InterruptProcessingException" and found["left"] == {"video/clip_00001_.mp4": 21}
    assert found["stopped"] == [True] and found["report"] == "stopped and kept at 1.31 s of 60.56 s"
    assert found["frames"] and found["memory"] == [6, 6] and found["idle"] == [{}, False]
    assert found["files"] == ["video/clip_00001_.mp4", "video/clip_00002_.mp4"], "a refused run leaves no file"
    refused = found["refused"]
    assert "vae needs Wan 2.1's VAE (or Wan 2.2's for TI2V) connected" in refused["vae"]
    assert "width: found 72" in refused["size"]
    assert "latents: found a batch of 2, expected 1" in refused["batch"]
    good = [prefix for prefix, answer in found["prefixes"].items() if answer is True]
    assert good == ["video/clip"]


def test_stop_and_keep_ends_after_a_block_and_everything_goes_on_from_there(inside):
    found = inside(CASES, "stopped")
    assert found["equal"] and found["goes on"] and found["memory"] == 6
    assert found["report"] == ["stopped and kept at 1.31 s of 3.56 s"]
    assert found["extended"] == [18, ["stopped and kept at 4.31 s of 31.31 s"]]
    assert found["again"] == [True, ["went on from the run before at 1.31 s: nothing before that has changed"]]


def test_a_run_after_a_change_goes_on_where_it_begins_to_differ(inside):
    found = inside(CASES, "resumed")
    assert [name for name, (equal, memory, _) in found.items() if not (equal and memory)] == []
    at = {name: report.partition(" s:")[0] for name, (_, _, report) in found.items()}
    same = {"last prompt": "2.06", "its switch": "2.06", "its time": "3.56", "longer": "3.56", "nothing": "3.56"}
    earlier = ("one before", "one is gone", "shorter", "window:6", "sink:3,window:6", "relative:3,window:6")
    same |= dict.fromkeys([*earlier, "blended:3,window:6", "window:6,int8"], "1.31")
    from_the_start = ("first prompt", "seed", "nfe", "shift", "stepping", "size", "batch", "policy")
    assert at == same | dict.fromkeys(from_the_start, "")


def test_guided_extended_and_started_clips_go_on_too(inside):
    found = inside(CASES, "resumed_further")
    for case in ("guided", "extension", "start", "no snapshots"):
        equal, report = found[case]
        assert equal and report, case
    assert found["other node"] == found["other model"] == found["no latents"] == ""
    assert found["runs"] == 2
