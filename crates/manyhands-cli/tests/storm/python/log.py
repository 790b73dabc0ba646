"""Who a client of the storm is, and the lines that it writes down; `history.rs` describes them."""

import os
import sys
import time

__all__ = ["ADDRESS", "KEY_FILE", "NAME", "ROLE", "STOP", "note"]

ROLE, ADDRESS, KEY_FILE, DIRECTORY, NAME = sys.argv[1:6]
STOP = os.path.join(DIRECTORY, "stop")
LOG = os.open(os.path.join(DIRECTORY, NAME + ".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def note(*words):
    """A whole line at once: we may be killed at any moment."""
    line = "%d %s\n" % (int(time.time() * 1e9), " ".join(words))
    os.write(LOG, line.encode("ascii"))
