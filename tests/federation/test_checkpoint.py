import json
import subprocess
import sys

import numpy as np
import pytest

from federation.checkpoint import FILE, Checkpoint, RunState, storage_errors
from federation.cohort import Cohort
from federation.errors import CheckpointError, StorageError
from federation.messages import Description, RoundFinished
from models.weights import weights_digest

EXPERIMENT = "sha256:" + "e" * 64
OTHER = "sha256:" + "0" * 64


def weights(value=1.0):
    # Not in alphabetical order: a request's digest depends on it.
    return {"z": np.full((2, 3), value, np.float32), "a": np.zeros((0, 4), np.float32)}


def some_state():
    site = Description(
        "b", "ab" * 32, EXPERIMENT, "x", "dicom", "MR", "about 50", "CC0", {"t": "1"}
    )
    receipts = [{"site": "b", "round": 1, "head_after": OTHER, "q": 0.1 + 0.2}]
    event = RoundFinished(
        1,
        ("b",),
        {"c": "budget"},
        {"b": {"dice": 0.1 + 0.2}},
        tuple(receipts),
        ("a",),
        "completed",
        3,
    )
    unscored = RoundFinished(2, (), {}, {}, outcome="skipped")
    return RunState(
        "ab" * 8,
        EXPERIMENT,
        round=2,
        num_averaged=1,
        repeats={"b": 1},
        cohort=Cohort({12: site, 3: site}, {"c": "budget"}, {"c": "why"}),
        events=[event],
        unscored=unscored,
        receipts=receipts,
    )


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that stopped after two rounds."""
    folder = tmp_path / "checkpoint"
    with Checkpoint(folder) as checkpoint:
        checkpoint.put("weights", 1, weights())
        checkpoint.put("average", 1, weights(0.5))
        checkpoint.save(some_state())
    return folder


def load(folder, experiment=EXPERIMENT):
    with Checkpoint.open(folder) as checkpoint:
        return checkpoint.load(experiment)


def test_what_was_saved_comes_back_to_the_last_bit_and_in_order(folder):
    state, found = load(folder)
    assert state == some_state()
    assert list(state.cohort.sites) == [12, 3]
    assert weights_digest(found) == weights_digest(weights())
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.load(EXPERIMENT)
        assert weights_digest(checkpoint.average) == weights_digest(weights(0.5))


def test_only_the_newest_arrays_are_kept(folder):
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.load(EXPERIMENT)
        checkpoint.put("weights", 3, weights(3.0))
        assert len(list(folder.glob("weights-*"))) == 2
        checkpoint.save(some_state())
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == ["average-000001.safetensors", "weights-000003.safetensors"]
    assert load(folder)[1]["z"][0, 0] == 3.0


def test_arrays_that_no_state_has_told_of_do_not_count(folder):
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.load(EXPERIMENT)
        checkpoint.put("weights", 2, weights(2.0))
    assert load(folder)[1]["z"][0, 0] == 1.0


def test_nothing_in_it_is_pickled_or_for_others_to_read(folder):
    assert {path.suffix for path in folder.iterdir()} == {"", ".json", ".safetensors"}
    json.loads((folder / FILE).read_bytes())
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])


class TestARefusal:
    def test_of_a_folder_without_one_says_what_to_do(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"holds no checkpoint.*Start a run with --out"):
            load(tmp_path)
        with Checkpoint(tmp_path / "new") as checkpoint, pytest.raises(CheckpointError):
            checkpoint.load(EXPERIMENT)

    def test_of_another_experiments_says_which(self, folder):
        with pytest.raises(CheckpointError, match=f"is a run of experiment {EXPERIMENT}.*{OTHER}"):
            load(folder, OTHER)

    def test_of_a_run_that_ended_says_why_it_did(self, folder):
        with Checkpoint.open(folder) as checkpoint:
            state, _ = checkpoint.load(EXPERIMENT)
            state.ended = "Round 3: 1 of 2 sites."
            checkpoint.save(state)
        with pytest.raises(
            CheckpointError, match=r"has ended: Round 3: 1 of 2 sites\. Start a new"
        ):
            load(folder)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    @pytest.mark.parametrize("name", [FILE, "weights-000001.safetensors"])
    def test_of_a_file_that_is_cut_names_it_and_a_way_out(self, folder, name, share):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])
        with pytest.raises(
            CheckpointError, match=rf"{name} is damaged.*from backup, or start a new"
        ):
            load(folder)

    @pytest.mark.parametrize(
        "name", [FILE, "weights-000001.safetensors", "average-000001.safetensors"]
    )
    def test_of_a_file_with_another_bit_names_it(self, folder, name):
        data = bytearray((folder / name).read_bytes())
        # In a digest's hex, or in a value.
        place = data.index(b"eeee") if name == FILE else len(data) - 3
        data[place] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged.*digest does not match"):
            load(folder)

    def test_of_arrays_that_are_gone_names_them(self, folder):
        (folder / "weights-000001.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"weights-000001\.safetensors is damaged"):
            load(folder)

    def test_of_another_format_names_both(self, folder):
        text = (
            (folder / FILE).read_text().replace("cohortium-checkpoint/1", "cohortium-checkpoint/9")
        )
        (folder / FILE).write_text(text)
        with pytest.raises(CheckpointError, match=r"format 'cohortium-checkpoint/9'.*reads"):
            load(folder)

    def test_of_a_new_run_where_there_is_one_leaves_that_as_it_is(self, folder, tmp_path):
        with pytest.raises(CheckpointError, match=r"did not come to its end.*--resume\), or give"):
            Checkpoint.new(folder)
        assert load(folder)[0] == some_state()
        with Checkpoint.new(tmp_path / "new") as checkpoint:
            assert not checkpoint.exists

    def test_of_a_second_process_at_once_sends_nothing(self, folder):
        code = (
            "import sys; from pathlib import Path; from federation.checkpoint import Checkpoint\n"
            "with Checkpoint.open(Path(sys.argv[1])): print('here', flush=True); input()\n"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdout.readline() == b"here\n"
        with pytest.raises(CheckpointError, match="Another process is carrying out the run"):
            load(folder)
        other.kill()
        other.communicate()
        assert load(folder)[0].round == 2


def test_a_run_that_is_over_leaves_no_checkpoint(folder):
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.remove()
    assert not folder.exists()


def test_a_disk_that_takes_no_more_is_said_with_a_way_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"goes on with|go on with 'cohortium run --resume'"):
        Checkpoint(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="No space left on device"), storage_errors(tmp_path):
        raise OSError(28, "No space left on device")
