"""One ingest at a time."""

import hashlib

import numpy as np
import pytest

from data_adapters.errors import DataError
from data_adapters.ingest import ingest
from data_adapters.sources import OmeZarrSource
from data_adapters.writing import write_ome_zarr_scan


def test_a_second_process_is_kept_out_of_a_cache_that_is_being_written(tmp_path):
    import fcntl

    cache = tmp_path / "cache"
    cache.mkdir()
    write_ome_zarr_scan(
        tmp_path / "source" / "s1" / "a.ome.zarr",
        image_zyx=np.arange(64, dtype=np.uint16).reshape(4, 4, 4),
        labels_zyx=np.ones((4, 4, 4), np.uint8),
        affine_ras=np.eye(4)[:, [2, 1, 0, 3]],
        labels_name="cells",
    )
    source = OmeZarrSource(
        kind="ome_zarr", path=tmp_path / "source", labels="cells", classes={1: "cell"}
    )

    def pseudonymise(text):
        return hashlib.sha256(text.encode()).hexdigest()

    with (cache / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="Another process is writing"):
            ingest(source, cache, pseudonymise=pseudonymise)
    assert ingest(source, cache, pseudonymise=pseudonymise).manifest.scans
