"""Put on PYTHONPATH by the tests: programs sleep a fraction of what they say, and fork.

Masters as people write them (lambdas, no ``__main__`` guard) serve their queues on the standard
library's own server only where that is forked, which Python 3.14 does no more unless it is told to.
"""

import os
import sys
import time

_sleep = time.sleep
_scale = float(os.environ.get("MANYHANDS_SLEEP_SCALE", "1"))
time.sleep = lambda seconds: _sleep(seconds * _scale)

if sys.version_info >= (3, 4):
    import multiprocessing

    multiprocessing.set_start_method("fork")
