"""Log files, counted on many machines: tasks are paths, and each answer is small.

To run it, where all machines see the files at the same paths:

    manyhands serve
    manyhands worker -j 4                             # on each machine, where this file is
    python log_files.py /var/log/nginx/*.log          # prints one answer for all of them
"""

import gzip
import os
import re
import sys
from collections import Counter

SERVER = os.environ.get("SERVER", "127.0.0.1:5000")
# In a line of a web server: "GET /path HTTP/1.1" 200 512
LINE = re.compile(r'"(?:[A-Z]+) (\S+)[^"]*" (\d{3}) (\d+|-)')


def count(path):
    """What is in one file: bytes, lines by status, and the paths that failed."""
    statuses, failed, size = Counter(), Counter(), 0
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", errors="replace") as file:
        for line in file:
            match = LINE.search(line)
            page, status, length = match.groups() if match else (None, "unreadable", "-")
            statuses[status] += 1
            size += int(length) if length != "-" else 0
            if page and status >= "500":
                failed[page] += 1
    return statuses, failed, size


def main(paths):
    from concurrent.futures import as_completed

    import manyhands

    statuses, failed, size = Counter(), Counter(), 0
    with manyhands.Executor(SERVER) as executor:
        calls = {executor.submit(log_files.count, path): path for path in paths}
        for call in as_completed(calls):  # one bad file does not keep the others' answer
            if call.exception() is not None:
                print(calls[call], "was left out:", repr(call.exception()), file=sys.stderr)
                continue
            for total, part in zip((statuses, failed), call.result()):
                total.update(part)
            size += call.result()[2]
    print(size, "bytes;", *("{}: {}".format(*pair) for pair in sorted(statuses.items())))
    for page, times in failed.most_common(5):
        print("failed", times, "times:", page)


if __name__ == "__main__":
    import log_files  # workers import it by this name

    main([os.path.abspath(path) for path in sys.argv[1:]])
