"""One round's updates as files until they are folded, so that memory holds one of them at most."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from federation.checkpoint import storage_errors
from models.weight_files import WeightFile


class Spool:
    """A folder that is emptied before and after a round.

    What is in it survives nothing: after a restart the sites send the same bytes again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._empty()
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, mode=0o700)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._empty()

    def keep(self, node_id: int, payload: bytes) -> WeightFile:
        """Keep a node's update: all of it under its name, or none.

        Raises:
            ModelError: It is not float32 weights in safetensors.
            StorageError: The disk does not take it.
        """
        path = self._path(node_id)
        coming = path.with_suffix(".coming")
        with storage_errors(self._folder):
            coming.write_bytes(payload)
            coming.replace(path)
            return WeightFile(path)

    def drop(self, node_id: int) -> None:
        """Remove a node's update, if there is one."""
        self._path(node_id).unlink(missing_ok=True)

    def _path(self, node_id: int) -> Path:
        # By number: a site chooses its own name.
        return self._folder / f"{node_id}.update"

    def _empty(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
