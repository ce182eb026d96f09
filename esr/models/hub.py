"""Downloads from the Hugging Face hub, and one sentence for each way they fail."""

from __future__ import annotations

import io
import time
from pathlib import Path

from huggingface_hub import errors, snapshot_download
from huggingface_hub.utils import logging, tqdm

from esr.config.sources import HubSource
from esr.models.failures import FetchError
from esr.progress import say


class Lines(tqdm):
    """A progress bar that says a line every ten seconds: bars would appear in executed notebooks."""

    every, last = 10.0, 0.0

    def __init__(self, *args, **options):
        line = "{desc}: {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left"
        options |= {"disable": False, "file": io.StringIO(), "bar_format": line, "mininterval": self.every}
        options.pop("name", None)
        super(tqdm, self).__init__(*args, **options)  # that of tqdm itself is silent once transformers disabled bars

    def display(self, msg=None, pos=None):
        if self.unit == "B" and time.monotonic() - Lines.last >= self.every:  # bytes; another bar counts files
            Lines.last = time.monotonic()
            say(f"fetch: {self}")


def fetch_snapshot(source: HubSource, patterns: list[str], ignored: list[str]) -> Path:
    """Folder of the hub's cache with the files of the repository that match `patterns`; its name is the commit.

    huggingface_hub keeps the cache, resumes broken downloads, finds the token and honours offline mode. Raises
    FetchError.
    """
    say(f"fetch: downloading {source.id} from the hub, unless it is in the cache")
    logging.set_verbosity_error()  # warnings would appear in executed notebooks
    try:
        snapshot = snapshot_download(
            source.id,
            revision=source.revision,
            allow_patterns=patterns,
            ignore_patterns=ignored,
            tqdm_class=Lines,
        )
    except Exception as error:  # of the hub's client, its HTTP library or the system
        raise FetchError(_explain(error, source)) from error
    if source.file and not Path(snapshot, source.file).is_file():
        raise FetchError(f"The hub's {source.id} (revision {source.revision}) holds no {source.file}: correct `file`.")
    return Path(snapshot)


def _explain(error: Exception, source: HubSource) -> str:
    """What went wrong and what to do, in one sentence."""
    name = f"The hub's {source.id}"
    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError
        return f"{name} is gated: accept its licence on the model's page, then log in (`hf auth login`, or HF_TOKEN)."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name} does not exist, or is private: check its `id`, or log in (`hf auth login`, or HF_TOKEN)."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {source.revision!r}: give a branch, a tag or a commit of it."
    if any(isinstance(e, errors.OfflineModeIsEnabled) for e in (error, error.__cause__, error.__context__)):
        return (
            f"{name} (revision {source.revision}) is not in the hub's cache, and HF_HUB_OFFLINE is set: "
            "unset it for a first download, or name a folder source."
        )
    reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{name} (revision {source.revision}) is not in the hub's cache, and the hub cannot be reached ({reason}): "
            "connect to the network, or name a folder source."
        )
    return (
        f"{name} (revision {source.revision}) could not be downloaded ({type(error).__name__}: {reason}): "
        "connect to the network and try again, or name a folder source."
    )
