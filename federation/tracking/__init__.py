"""Everything that knows MLflow. No other package of the project imports ``mlflow``.

MLflow reads these switches when it is imported, so they are set here, before any submodule can
import it: no usage reports, no progress bars, no chatter on the terminal.
"""

import os

os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"})
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
