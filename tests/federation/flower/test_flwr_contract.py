"""What this project relies on of flwr 1.41. A failure here means: read flwr's changes first."""

import inspect
import subprocess
import sys

import flwr
import flwr.app
import pytest
from flwr.app import Array, Context, Error, Message, MessageType, Metadata
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from flwr.supercore.inflatable import inflatable_object, inflatable_utils
from flwr.supercore.run import Run

from federation.flower.grid import LocalGrid
from federation.flower.strategy import CohortStrategy


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_was_read():
    assert flwr.__version__.startswith("1.41.")


def test_a_strategy_has_these_abstract_methods_and_start_drives_them():
    assert Strategy.__abstractmethods__ == {
        "configure_train",
        "aggregate_train",
        "configure_evaluate",
        "aggregate_evaluate",
        "summary",
    }
    assert parameters(Strategy.start) == [
        "self",
        "grid",
        "initial_arrays",
        "num_rounds",
        "timeout",
        "train_config",
        "evaluate_config",
        "evaluate_fn",
    ]


@pytest.mark.parametrize("name", sorted(Strategy.__abstractmethods__ | {"start"}))
def test_our_strategy_keeps_the_signature(name):
    assert parameters(getattr(CohortStrategy, name)) == parameters(getattr(Strategy, name))


@pytest.mark.parametrize("name", sorted(Grid.__abstractmethods__ - {"run"}))
def test_our_grid_keeps_the_signature(name):
    assert parameters(getattr(LocalGrid, name)) == parameters(getattr(Grid, name))


def test_a_grid_has_these_abstract_methods():
    assert Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }


def test_apps_are_called_and_registered_as_we_do():
    assert parameters(ClientApp.__call__) == ["self", "message", "context"]
    assert parameters(ServerApp.__call__) == ["self", "grid", "context"]
    for register in (ClientApp.train, ClientApp.evaluate, ClientApp.query):
        assert parameters(register) == ["self", "action", "mods"]


def test_records_are_made_as_we_do():
    assert parameters(make_message) == ["metadata", "content", "error"]
    assert parameters(Error) == ["code", "reason"]
    assert {"dtype", "shape", "stype", "data"} <= set(parameters(Array.__init__))
    assert {"run_id", "node_id", "node_config", "state", "run_config"} <= set(parameters(Context))
    assert "_message_id" in Metadata(1, "m", 1, 2, "", "1", 0.0, 1.0, "train").__dict__
    assert (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY) == (
        "train",
        "evaluate",
        "query",
    )
    assert Run.create_empty(1).run_id == 1
    assert issubclass(Message, inflatable_object.InflatableObject)


def test_messages_are_deflated_and_inflated_as_we_do():
    assert parameters(inflatable_object.get_all_nested_objects) == ["obj"]
    assert parameters(inflatable_object.no_object_id_recompute) == []
    assert parameters(inflatable_utils.inflate_object_from_contents)[:2] == [
        "object_id",
        "object_contents",
    ]


def test_flower_is_imported_with_its_reporting_off_and_without_ray():
    code = (
        "import os, sys, federation.flower.server_app, federation.flower.client_app\n"
        "assert os.environ['FLWR_TELEMETRY_ENABLED'] == '0'\n"
        "assert os.environ['FLWR_DISABLE_UPDATE_CHECK'] == '1'\n"
        "assert os.environ['FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION'] == '1'\n"
        "assert os.environ['RAY_USAGE_STATS_ENABLED'] == '0'\n"
        "from flwr.supercore import telemetry\n"
        "assert telemetry.FLWR_TELEMETRY_ENABLED == '0', telemetry.FLWR_TELEMETRY_ENABLED\n"
        "assert not {'ray', 'torch', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_naming_the_package_does_not_import_flwr():
    code = "import sys, federation.flower\nassert 'flwr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
