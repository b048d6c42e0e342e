"""Everything that knows MLflow. No other package of the project imports ``mlflow``.

MLflow reads these switches when it is imported, so they are set here, before any submodule can
import it: no progress bars, no chatter on the terminal. That it reports to nobody is set in
``federation/__init__.py``, which Python runs before this.
"""

import os

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
