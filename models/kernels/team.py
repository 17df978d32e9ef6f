"""The processes that compute one kernel together; a process alone is a team of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Team:
    """Over a group of ``torch.distributed``, gloo or NCCL; every member makes the same calls in the same order."""

    def __init__(self, group: "dist.ProcessGroup | None") -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    def everyones(self, value: T) -> list[T]:
        """What each member has, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self._group)
        return values

    def add(self, tensor: Tensor) -> None:
        """Replace by the sum over members."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What goes wrong for one member is raised by all, instead of leaving the others waiting for it."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            mine = error
        found = self.everyones(None if mine is None else f"{type(mine).__name__}: {mine}")
        if mine is not None:
            raise mine
        for rank, text in enumerate(found):
            if text is not None:
                raise RuntimeError(f"rank {rank} of {self.size} failed: {text}")
