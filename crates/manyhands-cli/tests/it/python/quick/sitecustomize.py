"""Put on PYTHONPATH by the tests: programs sleep a fraction of what they say."""

import os
import time

_sleep = time.sleep
_scale = float(os.environ.get("MANYHANDS_SLEEP_SCALE", "1"))
time.sleep = lambda seconds: _sleep(seconds * _scale)
