"""The ragged key-value cache of the generation loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin

ROOM = 16  # positions by which the cache grows


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, `[slots, heads, room, head_dim]`, written at each row's positions.

    Attention gets the whole room and masks empty positions: matrix products of a slice would copy it.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan

    def lazy_initialization(self, key_states, value_states):
        shape = (self.plan.slots, key_states.shape[1], self.plan.room, key_states.shape[-1])
        self.keys = key_states.new_zeros(shape)
        self.values = value_states.new_zeros(*shape[:-1], value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if missing := self.plan.room - self.keys.shape[2]:
            self.keys, self.values = (pad(tensor, (0, 0, 0, missing)) for tensor in (self.keys, self.values))
        rows, positions = self.plan.rows[:, None], self.plan.positions
        sources = slice(None) if len(key_states) == len(rows) else self.plan.prompts  # see Generator._spread
        self.keys[rows, :, positions] = key_states[sources].transpose(1, 2)
        self.values[rows, :, positions] = value_states[sources].transpose(1, 2)
        if self.plan.prefill:  # prompts attend only to themselves
            return key_states, value_states
        return self.keys, self.values

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]

    def copy(self, sources: Int[Tensor, " copies"], rows: Int[Tensor, " copies"], length: int) -> None:
        """Copy the first `length` keys and values of `sources` to `rows`."""
        for tensor in (self.keys, self.values):
            tensor[rows, :, :length] = tensor[sources, :, :length]

    def get_seq_length(self) -> int:
        return 0 if self.plan.prefill else self.plan.room

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.room, 0

    def get_max_length(self) -> int:
        return self.plan.room


@dataclass
class Plan:
    """Where the current forward pass writes; shared by all layers of the cache, updated before every pass."""

    slots: int
    room: int = 0  # cache positions of a row: grows in steps of ROOM, never shrinks
    rows: Tensor = field(init=False)
    positions: Tensor = field(init=False)
    prefill: bool = False
    prompts: Tensor | None = None  # during prefill: for each of `rows`, its prompt's index among the distinct ones

    def reserve(self, length: int) -> None:
        """Make room for `length` positions."""
        self.room = max(self.room, -(-length // ROOM) * ROOM)
