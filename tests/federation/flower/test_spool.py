import numpy as np
import pytest

from federation.errors import StorageError
from federation.flower.spool import Spool
from models.errors import ModelError
from models.weights import weights_to_bytes

PAYLOAD = weights_to_bytes({"w": np.float32([1, 2])})


def test_updates_are_files_until_the_round_is_over(tmp_path):
    folder = tmp_path / "spool"
    with Spool(folder) as spool:
        update = spool.keep(7, PAYLOAD)
        np.testing.assert_array_equal(update["w"], [1, 2])
        assert [path.read_bytes() for path in folder.iterdir()] == [PAYLOAD]
        spool.drop(7)
        spool.drop(8)
        assert list(folder.iterdir()) == []
    assert not folder.exists()


def test_what_an_earlier_process_left_is_not_taken_for_this_rounds(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "7.update").write_bytes(PAYLOAD)
    with Spool(folder):
        assert list(folder.iterdir()) == []


def test_it_is_emptied_when_a_round_fails_too(tmp_path):
    with pytest.raises(KeyError), Spool(tmp_path / "spool") as spool:
        spool.keep(7, PAYLOAD)
        raise KeyError
    assert not (tmp_path / "spool").exists()


def test_bytes_that_are_no_update_are_refused(tmp_path):
    with Spool(tmp_path / "spool") as spool, pytest.raises(ModelError, match="safetensors"):
        spool.keep(7, b"no weights")


def test_a_disk_that_takes_no_more_says_that_the_run_can_go_on(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"not lost.*Make room, then go on"),
        Spool(tmp_path / "file" / "spool"),
    ):
        pass
