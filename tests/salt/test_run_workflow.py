"""`salt run-workflow` against a small fake of ComfyUI's server; tests/comfyui has the real one."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from salt import cli
from salt.comfy_client.workflow import to_prompt

INFO = {
    "Loader": {"input": {"required": {"file": [["a.pt", "b.pt"]]}}, "display_name": "A Loader"},
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "seconds": ["FLOAT", {"default": 5.0}],
                "text": ["STRING", {"multiline": True}],
            },
            "optional": {"vae": ["VAE"], "forced": ["STRING", {"forceInput": True}], "cfg": ["FLOAT", {}]},
        }
    },
    "LoadImage": {"input": {"required": {"image": [["x.png"], {"image_upload": True}]}}},
}
PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"file": "a.pt"}, "_meta": {"title": "A Loader"}},
    "2": {
        "class_type": "Sampler",
        "inputs": {"seed": 3, "seconds": 1.5, "text": "a circle", "cfg": 1.0, "model": ["1", 0]},
        "_meta": {"title": "Make it"},
    },
}
OUTPUTS = {
    "2": {
        "images": [{"filename": "clip.mp4", "subfolder": "video", "type": "output"}],
        "text": ["21 frames"],
        "previews": [{"filename": "seen.png", "subfolder": "", "type": "temp"}],
    }
}
FAILED = {
    "node_id": "2",
    "node_type": "Sampler",
    "exception_message": "MODEL: found a plain Wan,\nexpected a student\n",
}


def browser_graph():
    return {
        "version": 0.4,
        "nodes": [
            {"id": 1, "type": "Loader", "widgets_values": ["a.pt"], "outputs": [{"name": "MODEL", "links": [7]}]},
            {
                "id": 2,
                "type": "Sampler",
                "title": "Make it",
                "inputs": [{"name": "model", "link": 7}, {"name": "vae", "link": None}],
                "widgets_values": [3, "randomize", 1.5, "a circle", 1.0],
            },
            {"id": 3, "type": "MarkdownNote", "widgets_values": ["read me"]},
            {"id": 4, "type": "Loader", "mode": 2, "widgets_values": ["b.pt"]},
        ],
        "links": [[7, 1, 0, 2, 0, "MODEL"]],
    }


class Stub:
    """The fake server: its answers, and what was posted to it. A run ends after `waits` requests of its history."""

    def __init__(self):
        self.info, self.outputs, self.messages, self.waits = INFO, OUTPUTS, [], 2
        self.refusal, self.started, self.lost = None, False, False
        self.posted = []

    def get(self, path, query):
        if path == "/object_info":
            return self.info
        if path == "/queue":
            if self.lost:
                return {"queue_running": [], "queue_pending": []}
            ours, other = [[2, "n1", {}, {}, []]], [[1, "other", {}, {}, []]]
            return {"queue_running": ours if self.started else other, "queue_pending": [] if self.started else ours}
        if path == "/history/n1":
            self.waits -= 1
            if self.waits > 0:
                return {}
            return {"n1": {"outputs": self.outputs, "status": {"messages": self.messages}}}
        if path == "/view":
            return (
                f"content of {query['subfolder'][0]}/{query['filename'][0]}".encode() if query.get("subfolder") else 404
            )
        return 404

    def post(self, path, body):
        self.posted.append((path, body))
        if path == "/prompt":
            return self.refusal or {"prompt_id": "n1", "number": 1, "node_errors": {}}
        return {}


@pytest.fixture
def stub():
    state = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            split = urlsplit(self.path)
            self.reply(state.get(split.path, parse_qs(split.query)))

        def do_POST(self):
            size = int(self.headers["Content-Length"])
            answer = state.post(self.path, json.loads(self.rfile.read(size)))
            self.reply(answer, 400 if "error" in answer else 200)

        def reply(self, answer, code=200):
            code, answer = (answer, {}) if isinstance(answer, int) else (code, answer)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def send(stub, tmp_path, monkeypatch):
    monkeypatch.setattr("salt.cli.run_workflow.POLL_SECONDS", 0.01)

    def run(*more, graph=PROMPT):
        (tmp_path / "w.json").write_text(json.dumps(graph))
        arguments = [
            str(a) for a in ("run-workflow", tmp_path / "w.json", "--server", stub.url, "--out", tmp_path / "out")
        ]
        return cli.main([*arguments, *more])

    return run


def test_results_are_saved_and_previews_are_not(send, stub, tmp_path, capsys):
    assert send() == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["clip.mp4"]
    assert (tmp_path / "out" / "clip.mp4").read_text() == "content of video/clip.mp4"
    assert stub.posted[0][1]["prompt"] == PROMPT
    assert str(tmp_path / "out" / "clip.mp4") in capsys.readouterr().out


def test_a_second_run_overwrites_nothing_and_stays_in_the_folder(send, stub, tmp_path):
    assert send() == 0
    stub.outputs = {"2": {"images": [{"filename": "../../clip.mp4", "subfolder": "other", "type": "output"}]}}
    assert send() == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip (2).mp4", "clip.mp4"]
    assert (tmp_path / "out" / "clip.mp4").read_text() == "content of video/clip.mp4"


@pytest.mark.parametrize("name", ["..", "a/..", "/", "C:clip.mp4", "a\0b", "..\\..", 7])
def test_a_servers_file_name_that_is_none_is_refused(send, stub, tmp_path, capsys, name):
    stub.outputs = {"2": {"images": [{"filename": name, "subfolder": "x", "type": "output"}]}}
    assert send() == cli.FAILED
    assert "file name" in one_line(capsys) and not (tmp_path / "out").exists()


def test_a_run_that_the_server_lost_is_not_waited_for(send, stub, capsys, monkeypatch):
    monkeypatch.setattr("salt.cli.run_workflow.LOST_POLLS", 2)
    stub.waits, stub.lost = 1000, True
    assert send() == cli.FAILED
    assert "n1 is neither queued nor running nor in the history" in one_line(capsys)


def test_a_result_that_is_too_large_is_refused(send, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("salt.comfy_client.client.MAX_RESULT_BYTES", 5)
    assert send() == cli.FAILED
    assert "/view: the answer has more than 5 bytes" in one_line(capsys) and not list((tmp_path / "out").iterdir())


def test_a_browser_workflow_is_converted_with_the_servers_node_definitions(send, stub):
    assert send(graph=browser_graph()) == 0
    assert stub.posted[0][1]["prompt"] == PROMPT


def test_an_upload_button_and_a_widget_newer_than_the_file():
    image = {"id": 1, "type": "LoadImage", "widgets_values": ["x.png", "image"]}
    older = {"id": 2, "type": "Sampler", "widgets_values": [3, "fixed", 1.5, "a circle"]}
    prompt = to_prompt({"nodes": [image, older], "links": []}, INFO)
    assert prompt["1"]["inputs"] == {"image": "x.png"}
    assert prompt["2"]["inputs"] == {"seed": 3, "seconds": 1.5, "text": "a circle", "cfg": 0.0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"widgets_values": ["a.pt", "more"]}, r"node 1 \(Loader\): found 2 widget values, expected at most 1"),
        ({"type": "Nowhere"}, "nodes that this server does not have: Nowhere"),
    ],
)
def test_a_browser_workflow_that_cannot_be_converted(change, expected):
    graph = browser_graph()
    graph["nodes"][0] |= change
    with pytest.raises(ValueError, match=expected):
        to_prompt(graph, INFO)


def test_widgets_are_set_by_number_title_and_type(send, stub):
    changes = ["2.seconds=9", "Make it.seed=12", "Loader.file=b.pt"]
    assert send(*(a for c in changes for a in ("--set", c))) == 0
    sent = stub.posted[0][1]["prompt"]
    assert sent["2"]["inputs"] == PROMPT["2"]["inputs"] | {"seconds": 9, "seed": 12}
    assert sent["1"]["inputs"] == {"file": "b.pt"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("Sampler.steps=4", "found no such widget, expected one of: seed, seconds, text, cfg"),
        ("Sampler.model=4", "found no such widget"),
        ("Nobody.seed=4", "found 0 nodes of that name, expected one of: 1 (Loader), 2 (Sampler)"),
        ("2.seconds=long", "found 'long', expected a number"),
        ("seconds", "expected NODE.WIDGET=VALUE"),
    ],
)
def test_a_widget_that_cannot_be_set_is_reported_and_nothing_is_sent(send, stub, capsys, change, expected):
    assert send("--set", change) == cli.FAILED
    assert expected in one_line(capsys) and stub.posted == []


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_an_answer_that_is_too_large_is_refused(send, capsys, monkeypatch):
    monkeypatch.setattr("salt.comfy_client.client.MAX_ANSWER_BYTES", 100)
    assert send() == cli.FAILED
    assert "/object_info: the answer has more than 100 bytes" in one_line(capsys)


def test_no_server_at_the_url(tmp_path, capsys):
    (tmp_path / "w.json").write_text(json.dumps(PROMPT))
    assert cli.main(["run-workflow", str(tmp_path / "w.json"), "--server", "127.0.0.1:9"]) == cli.FAILED
    assert "http://127.0.0.1:9: no ComfyUI server answers there" in one_line(capsys)


def test_another_program_at_the_url(send, stub, capsys):
    stub.info = 404
    assert send() == cli.FAILED
    assert "/object_info: not an answer of ComfyUI (HTTP status 404" in one_line(capsys)


def test_a_node_that_the_server_does_not_have(send, capsys):
    graph = {**PROMPT, "3": {"class_type": "SaltRollout", "inputs": {}}}
    assert send(graph=graph) == cli.FAILED
    assert "does not have: SaltRollout; is ComfyUI-Salt in its custom_nodes?" in one_line(capsys)


def test_a_rejected_prompt_with_the_servers_message(send, stub, capsys):
    fault = {"message": "Value not in list", "details": "file: 'a.pt' not in ['b.pt']"}
    stub.refusal = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {"1": {"class_type": "Loader", "errors": [fault]}},
    }
    assert send() == cli.FAILED
    assert "node 1 (Loader): Value not in list: file: 'a.pt' not in ['b.pt']" in one_line(capsys)


def test_a_partly_valid_prompt_does_not_run(send, stub, capsys):
    fault = {"message": "Value not in list", "details": "file"}
    stub.refusal = {"prompt_id": "n1", "node_errors": {"1": {"class_type": "Loader", "errors": [fault]}}}
    assert send() == cli.FAILED
    assert "node 1 (Loader): Value not in list" in one_line(capsys)
    assert ("/queue", {"delete": ["n1"]}) in stub.posted


def test_a_node_that_fails_is_named_with_its_message(send, stub, capsys):
    stub.messages = [["execution_start", {}], ["execution_error", FAILED]]
    assert send() == cli.FAILED
    assert "node 2 (Sampler): MODEL: found a plain Wan, expected a student" in one_line(capsys)


def test_a_run_cancelled_on_the_server(send, stub, capsys):
    stub.messages = [["execution_interrupted", {"node_id": "2"}]]
    assert send() == cli.FAILED
    assert "cancelled on the server" in one_line(capsys)


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_cancels_the_run_on_the_server(send, stub, monkeypatch, started):
    def interrupt(_):
        raise KeyboardInterrupt

    stub.waits, stub.started = 1000, started
    monkeypatch.setattr("salt.cli.run_workflow.time.sleep", interrupt)
    assert send() == 130
    assert ("/queue", {"delete": ["n1"]}) in stub.posted
    assert (("/interrupt", {"prompt_id": "n1"}) in stub.posted) is started, "only our own run is interrupted"


def test_a_run_without_results_is_an_error(send, stub, capsys):
    stub.outputs = {"2": {"text": ["21 frames"]}}
    assert send() == cli.FAILED
    assert "the run left no file" in one_line(capsys)


@pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"a": 1}'])
def test_a_file_that_is_not_a_workflow(stub, tmp_path, capsys, content):
    (tmp_path / "w.json").write_text(content)
    assert cli.main(["run-workflow", str(tmp_path / "w.json"), "--server", stub.url]) == cli.FAILED
    assert "expected a ComfyUI workflow" in one_line(capsys)


def test_a_folder_is_not_a_workflow(tmp_path, capsys):
    assert cli.main(["run-workflow", str(tmp_path)]) == cli.FAILED
    assert f"{tmp_path}: found a folder, expected a ComfyUI workflow" in one_line(capsys)
