"""What is on the disk: our journal's frames, the bytes of a directory, the file system."""

import struct
from pathlib import Path

FRAME_HEADER_BYTES = 48
SEGMENT_HEADER_BYTES = 64
IN_MEMORY = ("tmpfs", "ramfs")


def written(directory):
    """Number of frames in a journal, and their bytes. `docs/journal-format.md` has the format."""
    frames = bytes_ = 0
    for segment in sorted(Path(directory).glob("*.seg")):
        with segment.open("rb") as file:
            count, length = frames_in(file)
        frames += count
        bytes_ += length
    return frames, bytes_


def frames_in(file):
    count, position, expected = 0, SEGMENT_HEADER_BYTES, None
    while True:
        file.seek(position)
        header = file.read(FRAME_HEADER_BYTES)
        if len(header) < FRAME_HEADER_BYTES or header[:4] != b"MHFR":
            break
        length, _, number = struct.unpack_from("<QQQ", header, 16)
        if expected not in (None, number):
            break  # What a segment held before it was used again.
        position += (FRAME_HEADER_BYTES + length + 7) // 8 * 8
        count, expected = count + 1, number + 1
    return count, position - SEGMENT_HEADER_BYTES


def disk_bytes(directory):
    """What a directory takes of the disk."""
    total = 0
    for path in Path(directory).iterdir():
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            pass  # Let go since.
    return total


def file_system(directory):
    """Kind and device of the file system that holds `directory`."""
    best = ("", "", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mount, kind = line.split(" ")[:3]
        inside = mount == "/" or f"{directory}/".startswith(f"{mount}/")
        if inside and len(mount) >= len(best[1]):
            best = (device, mount, kind)
    return best[2], best[0]


def refuse_memory(directory):
    """Says which file system holds `directory`, which must be on a disk."""
    kind, device = file_system(directory)
    if kind in IN_MEMORY:
        raise SystemExit(f"{directory} is in memory ({kind}); name another by --directory")
    return f"{kind} ({device})"
