"""N queens, on many machines: a task is the first rows of a board, its result how many ways go on.

To run it:

    manyhands serve --data data
    manyhands worker -j 4                             # on each machine, where this file is
    python queens.py 14                               # again after it was killed, it goes on
"""

import os
import sys

SERVER = os.environ.get("SERVER", "127.0.0.1:5000")


def free(queens, column):
    """Whether no queen of the rows above attacks this column of the next one."""
    row = len(queens)
    return all(
        column != other and abs(column - other) != row - above for above, other in enumerate(queens)
    )


def beginnings(size, rows):
    """All ways to place queens in the first rows."""
    boards = [()]
    for _ in range(rows):
        boards = [b + (c,) for b in boards for c in range(size) if free(b, c)]
    return boards


def ways(size, queens):
    """How many ways there are to go on from a beginning: bits are columns, taken and attacked."""
    columns = left = right = 0
    for column in queens:
        columns |= 1 << column
        left, right = (left | 1 << column) << 1, (right | 1 << column) >> 1

    def place(columns, left, right):
        if columns == (1 << size) - 1:
            return 1
        count, possible = 0, ~(columns | left | right) & ((1 << size) - 1)
        while possible:
            bit = possible & -possible
            possible ^= bit
            count += place(columns | bit, (left | bit) << 1, (right | bit) >> 1)
        return count

    return place(columns, left, right)


if __name__ == "__main__":
    import manyhands
    import queens  # workers import it by this name

    size = int(sys.argv[1])
    boards = beginnings(size, min(3, size))
    with manyhands.Executor(SERVER, run="queens-{}".format(size)) as executor:
        print(sum(executor.map(queens.ways, [size] * len(boards), boards)))
