"""A chat endpoint on the loopback that misbehaves to order and counts what it is paid for.

with FaultServer(["429", "500"]) as server:     # these for the first requests, good replies after them
    ...
    server.paid                                  # Counter of replies with status 200, by the last message
"""

import collections
import contextlib
import http.server
import json
import socket
import struct
import threading
import time


def completion(content, finish="stop", refusal=None, prompt_tokens=10, completion_tokens=5, **more):
    """The body of a chat completion; `more` stands in its message."""
    message = {"role": "assistant", "content": content, "refusal": refusal, **more}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


def _error(message, code=None, param=None):
    return {"error": {"message": message, "code": code, "param": param, "type": "fault"}}


# fault: (status, headers, body); the paid ones among them have status 200
FAULTS = {
    "429": (429, {}, _error("slow down")),
    "429 later": (429, {"Retry-After": "0.4"}, _error("slow down")),
    "500": (500, {}, _error("out of order")),
    "no credit": (429, {"Retry-After": "0.01"}, _error("no credit left", "insufficient_quota")),
    "hard limit": (429, {"Retry-After": "0.01"}, _error("limit reached", "billing_hard_limit_reached")),
    "400": (400, {}, _error("the moon is wrong", "bad_moon")),
    "400 long": (400, {}, _error("maximum context length is 4", "context_length_exceeded")),
    "400 filter": (400, {}, _error("the prompt was\nfiltered", "content_filter")),
    "401": (401, {}, _error("wrong key")),
    "402": (402, {}, _error("no money")),
    "403": (403, {}, _error("not for you")),
    "404": (404, {}, _error("no such model")),
    "no choices": (200, {}, completion("x") | {"choices": []}),
    "no content": (200, {}, completion(None)),
    "empty": (200, {}, completion(" \n")),
    "refusal": (200, {}, completion(None, refusal="I will not\nsay that")),
    "filtered": (200, {}, completion("half a", finish="content_filter")),
    "length": (200, {}, completion("cut off in the", finish="length")),
    "garbage": (200, {}, completion("%% \ud800 {{{ no form at all")),
    "parts": (200, {}, completion([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "in parts"}])),
    "output parts": (
        200,
        {},
        completion(
            [
                {"type": "reasoning", "text": "hm"},
                {"type": "output_text", "text": "in "},
                "no mapping",
                {"type": "output_text", "text": "output"},
            ]
        ),
    ),
    "thinks": (200, {}, completion("<think>\n#### 5?\n</think>\n\nafter thought")),
    "fenced": (200, {}, completion("```text\nin a fence\n```\n")),
    "reasons": (200, {}, completion(None, reasoning_content="I should")),
    "reasons to the end": (200, {}, completion(None, finish="length", reasoning_content="I should")),
    "calls a tool": (200, {}, completion(None, finish="tool_calls", tool_calls=[{"id": "1"}])),
    "no usage": (200, {}, {k: v for k, v in completion("Text: long enough").items() if k != "usage"}),
}
# answers with status 200 that are no replies
TORN = {
    "html": b"<html>be right back</html>",
    "half": json.dumps(completion("lost")).encode()[:-20],
    "error in 200": json.dumps(_error("upstream fell over")).encode(),
    "nothing": json.dumps({"choices": []}).encode(),
}


class FaultServer:
    """`faults` are used up one by one as requests arrive; `always` is the fault of all that come after them.

    `refuses`: names of parameters that are answered with status `refusal`, naming them; "system" is the role.
    `delay`: seconds by message. `hold_after`: once so many replies were paid, requests hang until `release`, and
    are dropped unpaid.
    """

    def __init__(
        self,
        faults=(),
        always=None,
        refuses=(),
        answer="to {}",
        delay=lambda content: 0,
        hold_after=None,
        refusal=400,
    ):
        self.refusal, self.said = refusal, "'{}' is not supported here"
        self.said_of_system = "System role not supported"
        self.faults = collections.deque(faults)
        self.always, self.refuses, self.answer, self.delay = always, set(refuses), answer, delay
        self.hold_after = hold_after
        self.paid: collections.Counter = collections.Counter()
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.models: tuple[int, dict] = (200, {"object": "list", "data": []})
        self.released = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self):
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.release()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def release(self):
        """End all requests that hang, and hang no more for `hold_after`."""
        self.hold_after = None
        self.released.set()


class _Http(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that closing the server waits for its threads
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Clients that are gone are part of the game."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        owner = self.server.owner
        owner.keys.add(self.headers["Authorization"])
        status, body = owner.models
        self._send(status, {}, json.dumps(body).encode())

    def do_POST(self):
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        with owner.lock:
            owner.bodies.append(body)
            owner.times.append(time.monotonic())
            owner.keys.add(self.headers["Authorization"])
            roles = {message["role"] for message in body["messages"]}
            named = next((name for name in (*body, *roles) if name in owner.refuses), None)
            fault = None if named else owner.faults.popleft() if owner.faults else owner.always
            held = owner.hold_after is not None and owner.paid.total() >= owner.hold_after
            if not held and named is None and (fault is None or FAULTS.get(fault, (0,))[0] == 200):
                owner.paid[content] += 1
        if held or fault == "hang":
            owner.released.wait(20)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault == "truncated":
            self._send(200, {"Content-Length": "5000"}, json.dumps(completion("lost")).encode())
        elif named:
            said = owner.said_of_system if named == "system" else owner.said.format(named)
            self._send(owner.refusal, {}, json.dumps(_error(said, None, named)).encode())
        elif fault in TORN:
            self._send(200, {}, TORN[fault])
        elif fault is not None:
            status, headers, answer = FAULTS[fault]
            told = json.dumps(answer).encode().replace(b"wrong key", self._echo())
            # As servers do, with the length of this very prompt.
            told = told.replace(b"length is 4", b"length is 4, you asked for %d" % len(owner.bodies))
            self._send(status, headers, told)
        else:
            time.sleep(owner.delay(content))
            answer = owner.answer.format(content)
            self._send(200, {}, json.dumps(completion(answer, completion_tokens=len(content))).encode())

    def _echo(self):
        """The key that came, as careless servers repeat it."""
        return b"wrong key " + self.headers["Authorization"].removeprefix("Bearer ").encode()

    def _send(self, status, headers, body):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
