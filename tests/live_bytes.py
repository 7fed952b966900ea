"""Counts the bytes of tensors that are alive, and the most there were: the peak memory of code that never ran."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered, every storage that an operation makes counts until it is freed, and no other.

    Works with real and with fake tensors, which have sizes but no content.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        self._known: dict[int, Any] = {}
        """A weak reference by the address of each storage."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._take_note((args, kwargs), is_new=False)
        result = func(*args, **(kwargs or {}))
        self._take_note(result, is_new=True)
        self.peak = max(self.peak, self.now)
        return result

    def _take_note(self, values: Any, *, is_new: bool) -> None:
        for tensor in (x for x in tree_leaves(values) if isinstance(x, Tensor)):
            storage = tensor.untyped_storage()
            address = storage._cdata
            known = self._known.get(address)
            if known is not None and known() is not None:
                continue
            size = storage.nbytes() if is_new else 0
            self._known[address] = weakref.ref(storage, self._forgetter(address, size))
            self.now += size

    def _forgetter(self, address: int, size: int) -> Any:
        def forget(reference: Any) -> None:
            self.now -= size
            if self._known.get(address) is reference:
                del self._known[address]

        return forget
