"""Language models as judges, through any provider of inspect-ai or any OpenAI-compatible server.

Raw replies are cached under a digest of judge and request: a killed run resumes, and no reply is paid for twice. Every
run parses them again (`esr.judging.replies`). Failed requests are not cached; the next run repeats them. Replies to
labelled responses are shipped, so that experiment 7 is measured without the models (`esr judge validate --ship`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from esr.config.judges import LlmJudge
from esr.judging.embedding import RememberingEmbedder, load_embedder
from esr.judging.offline import is_degraded
from esr.judging.providers import (
    JudgeError,
    check_url,
    describe,
    generate,
    hide_secrets,
    open_model,
    run_quietly,
    server_url,
)
from esr.judging.replies import RUBRIC, ParsedReply, Verdict, claims_restart, question, read_reply, rubric_digest
from esr.judging.restarts import Detector, Restart
from esr.judging.server import serving, weights_of
from esr.paths import CACHE, DATA
from esr.progress import Progress, say
from esr.storage.digests import digest
from esr.storage.files import read_rows, write_rows, write_text
from esr.storage.records import Judgement, Record, Trial

BYTES_PER_TOKEN = 4  # of English in current tokenizers; for estimates only
REPLIES = DATA / "judge" / "replies.jsonl"  # of judges on this machine, to labelled responses
REPLY_TOKENS = 48  # of a verdict with one attempt, the most frequent one; for estimates only


class Reply(Record):
    """A judge's raw reply to one request."""

    judge: str
    text: str
    stop_reason: str  # of inspect-ai: "stop", "max_tokens", "content_filter", ...
    input_tokens: int
    output_tokens: int
    counted: bool  # by the server; false for estimates


class ShippedReply(Reply):
    """A reply to a request about a labelled response, in data/judge/replies.jsonl."""

    key: str


class ModelJudge:
    """A language model that judges responses. `name` identifies model, server, rubric and settings.

    The name does not depend on limits of speed and cost.
    """

    def __init__(self, entry: LlmJudge, detector: Detector | None = None):
        """detector: of restarts, by default the shipped one, which is loaded when a reply claims a restart.

        Raises JudgeError when `base_url` may hold a secret.
        """
        check_url(entry)
        self.entry, self.detector = entry, detector
        settings = {
            "temperature": entry.temperature,
            "max_tokens": entry.max_tokens,
            "schema": Verdict.model_json_schema() if entry.structured else None,
            "server": weights_of(entry.serve) if entry.serve else server_url(entry),
        }
        model = entry.model or str(entry.serve)
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.")
        self.name = f"{slug}-{digest(model, settings, rubric_digest())}"
        self.folder = CACHE / "judgements" / self.name
        shipped = read_rows(REPLIES, ShippedReply) if REPLIES.exists() else []
        self.shipped = {row.key: row for row in shipped if row.judge == self.name}

    def judge(self, trials: Sequence[Trial]) -> list[Judgement]:
        """One judgement per trial, in order; identical trials share a request, empty responses need none.

        Raises JudgeError when the judge cannot be set up, or when its estimated or actual cost exceeds `max_cost` (USD
        per run). Replies so far are kept; requests in flight are still paid.
        """
        keys = [self._key(trial) for trial in trials]
        wanted = {key: trial for key, trial in zip(keys, trials, strict=True) if trial.text.strip()}
        if self._missing(wanted):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "judge.lock"):  # two runs at a time would pay twice
                self._request(self._missing(wanted), len(wanted))
        replies = {key: self._read(key) for key in wanted}
        claimed = {
            key: trial for key, trial in wanted.items() if (reply := replies[key]) and claims_restart(reply.text)
        }
        restarts = self._restarts(claimed)
        return [
            self._record(trial, replies.get(key), restarts.get(key, []))
            for key, trial in zip(keys, trials, strict=True)
        ]

    def _restarts(self, trials: dict[str, Trial]) -> dict[str, list[Restart]]:
        """Restarts of the responses in which a reply claims some."""
        if trials and self.detector is None:
            self.detector = Detector.load(RememberingEmbedder(load_embedder()))
        if not trials or self.detector is None:
            return {}
        found = self.detector.find([t.prompt for t in trials.values()], [t.text for t in trials.values()])
        return dict(zip(trials, found, strict=True))

    def _key(self, trial: Trial) -> str:
        return digest(self.name, question(trial))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _missing(self, wanted: dict[str, Trial]) -> dict[str, Trial]:
        """The trials without a shipped or cached reply."""
        return {k: trial for k, trial in wanted.items() if k not in self.shipped and not self._path(k).exists()}

    def judge_shipped(self, trials: Sequence[Trial]) -> list[Judgement]:
        """As `judge`, by the shipped replies alone. Raises JudgeError when some are missing; no request is sent."""
        missing = sum(self._key(trial) not in self.shipped for trial in trials if trial.text.strip())
        if missing:
            raise JudgeError(
                f"{REPLIES} lacks replies of {self.entry.name} to {missing} of {len(trials)} labelled responses: run "
                f"`esr judge validate --judge {self.entry.name} --part report --ship`."
            )
        return self.judge(trials)

    def ship(self, trials: Sequence[Trial]) -> int:
        """Add the replies about `trials` to data/judge/replies.jsonl; how many were added."""
        before = read_rows(REPLIES, ShippedReply) if REPLIES.exists() else []
        keys = dict.fromkeys(key for key in map(self._key, trials) if key not in self.shipped)
        new = [ShippedReply(key=key, **vars(reply)) for key in keys if (reply := self._read(key))]
        write_rows(REPLIES, [*before, *new])
        return len(new)

    def _read(self, key: str) -> Reply | None:
        if key in self.shipped:
            return self.shipped[key]
        path = self._path(key)
        try:
            return Reply.model_validate_json(path.read_bytes()) if path.exists() else None
        except ValueError:
            raise ValueError(f"{path} is no judge's reply: remove it, and the next run requests it again.") from None

    def _request(self, missing: dict[str, Trial], total: int) -> None:
        if not missing:
            return
        self._announce(missing, total)
        with serving(self.entry) if self.entry.serve else nullcontext(self.entry) as entry:
            round_ = Round(self, entry, missing, total)
            run_quietly(round_.run)
        round_.report()

    def _announce(self, missing: dict[str, Trial], total: int) -> None:
        """Report the estimated cost of the requests. Raises JudgeError when it exceeds max_cost."""
        tokens_in = sum(_tokens(RUBRIC) + _tokens(question(trial)) for trial in missing.values())
        tokens_out = REPLY_TOKENS * len(missing)
        cost = self.cost(tokens_in, tokens_out)
        price = "cost unknown, no prices are given" if cost is None else f"about ${cost:.4f}"
        model = self.entry.model or self.entry.serve
        say(
            f"{self.entry.name}: {len(missing)} of {total} responses to judge with {model}, "
            f"about {tokens_in} tokens in and {tokens_out} out: {price}"
        )
        limit = self.entry.max_cost
        if limit is not None and cost is not None and cost > limit:
            raise JudgeError(
                f"Judge {self.entry.name}: {len(missing)} responses cost about ${cost:.4f}, max_cost is ${limit:.4f}: "
                "raise max_cost or judge fewer responses. No request was sent."
            )

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """Price in USD; None when a price per token is not given."""
        per_input, per_output = self.entry.usd_per_million_input, self.entry.usd_per_million_output
        if per_input is None or per_output is None:
            return None
        return (input_tokens * per_input + output_tokens * per_output) / 1e6

    def _record(self, trial: Trial, reply: Reply | None, restarts: Sequence[Restart]) -> Judgement:
        if reply is None:
            parsed = ParsedReply("run_error" if trial.text.strip() else "empty", [], 0)
        else:
            parsed = read_reply(reply.text, reply.stop_reason, trial.text, restarts)
        shared = {name: getattr(trial, name) for name in ("model", "condition", "latent", "prompt_id", "seed")}
        return Judgement(
            trial_id=trial.id, judge=self.name, degraded=is_degraded(trial.text), **parsed._asdict(), **shared
        )


class Round:
    """One run's requests to one judge."""

    def __init__(self, judge: ModelJudge, entry: LlmJudge, missing: dict[str, Trial], total: int):
        """entry: the judge's, with the address of its server."""
        self.judge, self.entry, self.missing = judge, entry, missing
        self.waiting = iter(missing.items())
        self.failures: Counter[str] = Counter()
        self.replied = self.tokens = 0
        self.spent = 0.0  # USD; stays 0 where prices are not given
        self.stopped = False
        self.progress = Progress(self.entry.name, total, "responses")
        self.progress.reuse(total - len(missing))

    async def run(self) -> None:
        import anyio

        async with open_model(self.entry) as model, anyio.create_task_group() as group:
            for _ in range(min(self.entry.max_connections, len(self.missing))):
                group.start_soon(self._work, model)

    async def _work(self, model) -> None:
        for key, trial in self.waiting:
            if self.entry.max_cost is not None and self.spent >= self.entry.max_cost:
                self.stopped = True
                return
            try:
                reply = await self._reply(model, trial)
            except Exception as error:  # errors differ between providers
                self.failures[describe(error)] += 1
                continue
            write_text(self.judge._path(key), reply.model_dump_json(indent=1) + "\n")
            self.replied += 1
            self.tokens += reply.input_tokens + reply.output_tokens
            self.spent += self.judge.cost(reply.input_tokens, reply.output_tokens) or 0.0
            self.progress.update(self.replied + self.failures.total(), self.tokens)

    async def _reply(self, model, trial: Trial) -> Reply:
        message = question(trial)
        output = await generate(model, RUBRIC, message)
        text, usage = output.completion, output.usage
        cached = (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0) if usage else 0
        return Reply(
            judge=self.judge.name,
            text=hide_secrets(text.encode("utf-8", "backslashreplace").decode()),
            stop_reason=output.stop_reason,
            input_tokens=usage.input_tokens + cached if usage else _tokens(RUBRIC) + _tokens(message),
            output_tokens=usage.output_tokens if usage else _tokens(text),
            counted=usage is not None,
        )

    def report(self) -> None:
        """Report replies, cost and failures. Raises JudgeError when max_cost ended the run early."""
        name, failed = self.entry.name, self.failures.total()
        spent = "" if self.judge.cost(0, 0) is None else f", ${self.spent:.4f} spent"
        say(f"{name}: {self.replied} replies, {self.tokens} tokens{spent}")
        if failed:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.failures.most_common())
            say(f"{name}: {failed} requests failed after all retries; the next run repeats them: {reasons}")
        if self.stopped:
            left = len(self.missing) - self.replied - failed
            raise JudgeError(
                f"Judge {name}: ${self.spent:.4f} spent, max_cost is ${self.entry.max_cost:.4f}: stopped with {left} "
                f"responses not judged. The {self.replied} replies are kept: raise max_cost or run again."
            )


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
