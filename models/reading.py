"""What takes a value out of a tensor, or makes a shape of values: decisions by data.

Found out in two places, and in neither by a list of what is forbidden. Between Python and torch,
whatever is given a tensor and gives something else than tensors hands out values, unless it is
known to describe a tensor only (its shape, its type). Below, torch's own tags of its operators say
which read values, and which give shapes that depend on them.

What reads a tensor's memory behind torch's back (``ctypes``) is not seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
# Masks are these; any other index gives as many rows as it has itself.
_MASKS = frozenset({torch.bool, torch.uint8})

# Of these the answer is the same whatever a tensor of this shape and type holds. ``__get__`` is
# every property (shape, dtype, device, requires_grad).
_DESCRIBING = frozenset({"__get__", "__len__", "__hash__", "dim", "ndimension", "size", "stride"})
_DESCRIBING |= {"numel", "nelement", "element_size", "storage_offset", "get_device", "type"}
_DESCRIBING |= {"is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_inference"}
_DESCRIBING |= {"is_conj", "is_neg", "is_pinned", "is_shared", "is_same_size", "is_set_to"}
_DESCRIBING |= {"has_names", "result_type", "can_cast", "sparse_dim", "dense_dim", "_is_view"}
_DESCRIBING |= {"register_hook", "register_post_accumulate_grad_hook"}


def hands_out_values(function: str, given: Any) -> bool:
    """Tell whether what a torch function made of tensors can hold their values in the open.

    >>> hands_out_values("tolist", [1.0]), hands_out_values("__format__", "1.0")
    (True, True)
    >>> hands_out_values("size", torch.Size([2])), hands_out_values("relu", torch.zeros(2))
    (False, False)
    """
    return function not in _DESCRIBING and not _is_of_dense_tensors(given)


def only_checks(function: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a torch function reads values only to raise where they are out of range.

    >>> classes = torch.tensor([0, 2])
    >>> only_checks("one_hot", (classes, 3), {}), only_checks("one_hot", (classes,), {})
    (True, False)
    """
    num_classes = kwargs.get("num_classes", args[1] if len(args) > 1 else -1)
    return function == "one_hot" and num_classes != -1


class Constants:
    """Which tensors no image, label or weight went into, as the axes that MONAI's losses count.

    By their memory: a view of one is one, and writing data through any view ends it for all.
    """

    def __init__(self) -> None:
        # Kept alive, so that no other tensor can come to have the same address.
        self._memory: dict[int, torch.UntypedStorage] = {}

    def hold(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Tell whether all of them are constants, as none at all are."""
        return all(_address(tensor) in self._memory for tensor in tensors)

    def follow(
        self, taken: Sequence[torch.Tensor], given: Sequence[torch.Tensor], of_constants: bool
    ) -> None:
        """Note what a torch function made of constants alone, or of others as well."""
        for tensor in (*taken, *given):
            address = _address(tensor)
            if address is not None and of_constants:
                self._memory[address] = tensor.untyped_storage()
            elif address is not None:
                self._memory.pop(address, None)


def _address(tensor: torch.Tensor) -> int | None:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # Sparse ones and wrapped ones have no memory.
        return None


class ReadsBelow(TorchDispatchMode):
    """Tell ``on_read`` the name of every operator that reads values, or makes shapes of them."""

    def __init__(self, on_read: Callable[[str], None]) -> None:
        super().__init__()
        self._on_read, self._paused = on_read, False

    @contextmanager
    def paused(self, paused: bool) -> Iterator[None]:
        """Say nothing meanwhile, if ``paused``."""
        self._paused = paused
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not self._paused and not _TAGS.isdisjoint(func.tags) and _by_values(func, args):
            self._on_read(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _by_values(func: Any, args: Any) -> bool:
    """Tell apart a mask, which gives as many rows as it has ones, and an index."""
    if func.overloadpacket is not torch.ops.aten.index:
        return True
    return any(index is not None and index.dtype in _MASKS for index in args[1])


def _is_of_dense_tensors(given: Any) -> bool:
    """Tell whether nothing but tensors is there; of a sparse one the size depends on values."""
    if isinstance(given, torch.Tensor):
        return given.layout == torch.strided
    if isinstance(given, torch.Size) or not isinstance(given, list | tuple):
        return given is None
    return all(map(_is_of_dense_tensors, given))
