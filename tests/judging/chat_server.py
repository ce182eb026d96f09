"""A scripted OpenAI-compatible server on loopback: real HTTP, replies as a test wants them, every request counted."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Scripted:
    """One HTTP response: `content` is the reply of the model, or the body itself when `status` is not 200."""

    content: str = ""
    status: int = 200
    finish_reason: str = "stop"
    delay: float = 0.0  # seconds
    usage: tuple[int, int] | None = (100, 20)
    headers: dict[str, str] = field(default_factory=dict)


def verdict(*attempts: tuple[str, float]) -> str:
    return json.dumps({"attempts": [{"opening": opening, "score": score} for opening, score in attempts]})


class ChatServer:
    """`script(material, nth)` decides the response to the `nth` request (from 1) about the same material, which is
    the user message as the judge's model sees it: prompt, distractor, response."""

    def __init__(self, script: Callable[[dict, int], Scripted]):
        self.script = script
        self.requests: list[dict] = []  # bodies, with the Authorization header under "key"
        self.requests_for: Counter[str] = Counter()  # by response
        self.running = self.max_running = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(outer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                material = json.loads(body["messages"][-1]["content"])
                with outer._lock:
                    outer.requests.append(body | {"key": self.headers["Authorization"]})
                    outer.requests_for[material["response"]] += 1
                    nth = outer.requests_for[material["response"]]
                    outer.running += 1
                    outer.max_running = max(outer.running, outer.max_running)
                scripted = outer.script(material, nth)
                time.sleep(scripted.delay)
                with outer._lock:
                    outer.running -= 1
                self._send(scripted, completion(body["model"], scripted))

            def _send(self, scripted, body):
                content = scripted.content if scripted.status != 200 else body
                self.send_response(scripted.status)
                for name, value in ({"Content-Type": "application/json"} | scripted.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def handle(self):
                with suppress(ConnectionError):  # the client gave up waiting, or was killed
                    super().handle()

            def log_message(self, *_):
                pass

        return Handler


def completion(model: str, scripted: Scripted) -> str:
    message = {"role": "assistant", "content": scripted.content}
    usage = None
    if scripted.usage:
        tokens_in, tokens_out = scripted.usage
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    return json.dumps(
        {
            "id": "reply",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": scripted.finish_reason}],
            "usage": usage,
        }
    )
