"""Access to a judge's model through inspect-ai: client, key, limits, and errors without secrets.

Keys come from the environment or from `.env` in the repository's root. Error messages of servers are never shown: they
may quote keys. inspect-ai is imported only when a model is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

from esr.config.judges import LlmJudge
from esr.judging.replies import Verdict
from esr.paths import ROOT

LOCAL = {"localhost", "127.0.0.1", "::1"}
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")  # in the name of an environment variable


class JudgeError(RuntimeError):
    """A judge cannot start or continue; the message says why in one sentence."""


class NoReply(Exception):
    """The server sent a response without a reply."""


def check_url(entry: LlmJudge) -> None:
    """Raise JudgeError when `base_url`, which notebooks show, may hold a secret."""
    url = urlsplit(entry.base_url or "")
    if url.username or url.password or url.query:
        raise JudgeError(f"Judge {entry.name}: base_url holds a user, password or query: keys belong in .env.")


def server_url(entry: LlmJudge) -> str:
    """Where requests go: `base_url`, else the variable of the environment or of .env that the client reads, else ""."""
    if not entry.base_url and (ROOT / ".env").is_file():
        _load_environment()
    provider, *rest = entry.model.split("/")
    service = rest[0] if provider == "openai-api" else provider
    variables = (f"{service.upper().replace('-', '_')}_BASE_URL", "INSPECT_EVAL_MODEL_BASE_URL")
    found = [url for url in (entry.base_url, *map(os.environ.get, variables)) if url]
    return found[0].rstrip("/") if found else ""


def _load_environment() -> None:
    with suppress(ImportError):  # of the extra `judges`, without which no model is opened
        from dotenv import load_dotenv

        load_dotenv(ROOT / ".env")


def run_quietly(work: Callable[[], Awaitable[None]]) -> None:
    """Run asynchronous `work` to its end, in scripts and notebooks, and discard what it displays.

    It runs in a separate thread, because a notebook's thread already has an event loop. inspect-ai displays tracebacks
    with the messages of servers. An interrupt cancels the work.
    """
    from anyio.from_thread import start_blocking_portal
    from IPython.utils.capture import capture_output

    with capture_output(stdout=False, stderr=False, display=True), start_blocking_portal() as portal:
        portal.call(work)


def open_model(entry: LlmJudge):
    """The judge's model, an asynchronous context manager. Raises JudgeError when it cannot be set up."""
    try:
        from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
        from inspect_ai.util import json_schema
    except ImportError:
        raise JudgeError("LLM judges need the packages of the extra `judges`: pip install -e '.[judges]'.") from None
    _load_environment()
    schema = ResponseSchema(name="verdict", json_schema=json_schema(Verdict), strict=True) if entry.structured else None
    config = GenerateConfig(
        temperature=entry.temperature,
        max_tokens=entry.max_tokens,
        response_schema=schema,
        max_connections=entry.max_connections,
        max_retries=entry.max_retries,
        attempt_timeout=entry.timeout_s,
        timeout=entry.timeout_s * (entry.max_retries + 1),
    )
    try:
        return get_model(entry.model, config=config, base_url=entry.base_url, memoize=False, **_client(entry))
    except Exception as error:  # inspect-ai says what is missing: a variable, a package, a provider
        reason = re.sub(r"\[/?\w+\]", "", " ".join(hide_secrets(str(error)).split())).rstrip(".")
        raise JudgeError(
            f"Judge {entry.name}: {entry.model} cannot be set up: {reason}. Keys belong in the environment or in "
            f"{ROOT / '.env'}."
        ) from None


async def generate(model, instruction: str, message: str):
    """The model's output. Raises NoReply when it is empty, and the errors of the provider's client."""
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser

    output = await model.generate([ChatMessageSystem(content=instruction), ChatMessageUser(content=message)])
    if output.error or not output.choices:
        raise NoReply
    return output


def _client(entry: LlmJudge) -> dict:
    """Arguments of the client: OpenAI's would retry beyond our limit; a local server needs no key."""
    provider, *rest = entry.model.split("/")
    if provider != "openai-api":
        return {}
    variable = f"{rest[0].upper().replace('-', '_')}_API_KEY"
    local = entry.base_url and urlsplit(entry.base_url).hostname in LOCAL
    return {"max_retries": 0} | ({"api_key": "none"} if local and not os.environ.get(variable) else {})


def describe(error: BaseException) -> str:
    """An error's type and HTTP status, without its message, which may quote the key or the response."""
    while error.__cause__ is not None and type(error).__name__ in ("RetryError", "ModelGenerateError"):
        error = error.__cause__
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__} {status}" if isinstance(status, int) else type(error).__name__


def hide_secrets(text: str) -> str:
    """`text` without the values of environment variables with names of secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name.upper()) and len(value) >= 8:
            text = text.replace(value, f"[{name}]")
    return text
