"""Everything that knows Flower. No other package of the project imports ``flwr``.

Flower reads these switches when it is imported, so they are set here, before any submodule
can import it: no usage reports, no update check, no packages installed on request.
"""

import os

os.environ.update(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)
