"""Everything that knows MLflow. No other package of the project imports ``mlflow``.

MLflow reads these switches when it is imported, so they are set here, before any submodule can
import it: no progress bars, no chatter on the terminal. That it reports to nobody is set in
``federation/__init__.py``, which Python runs before this.
"""

import os

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that does not answer is said to be down after seconds, not minutes: nothing is lost.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
