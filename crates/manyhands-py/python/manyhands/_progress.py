"""How far a map is, on a terminal: by tqdm if it is installed, else in a line of our own."""

import sys
import time

# Nothing is shown of what takes less, and how often it is, in seconds.
_DELAY, _PAUSE = 1.0, 0.2


def shown(results, total, wanted):
    """The same results. ``wanted`` is ``None`` for where there is a terminal."""
    if wanted is None:
        wanted = sys.stderr is not None and sys.stderr.isatty()
    if not wanted:
        return results
    try:
        from tqdm import tqdm
    except ImportError:
        return _line(results, total)
    return iter(tqdm(results, total=total, delay=_DELAY, mininterval=_PAUSE, leave=False))


def tell(text):
    """Say something that a program would not find out otherwise."""
    if sys.stderr is not None:
        _write("manyhands: {}\n".format(text))


def _line(results, total):
    began = told = time.monotonic()
    count, is_shown = 0, False
    try:
        for result in results:
            count += 1
            now = time.monotonic()
            if now - began > _DELAY and now - told > _PAUSE:
                told, is_shown = now, True
                _write("\r" + text(count, total, now - began) + "\x1b[K")
            yield result
    finally:
        results.close()
        if is_shown:
            _write("\r\x1b[K")


def text(count, total, seconds):
    """How far it is, how fast, and how much longer it takes."""
    rate = count / seconds
    done = "{:,} of {:,}".format(count, total) if total else "{:,} done".format(count)
    text = "{}, {:.3g}/s".format(done, rate)
    if total:
        text += ", {} left".format(_duration((total - count) / rate))
    return text


def _duration(seconds):
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return "{}:{:02}:{:02}".format(hours, minutes, seconds)


def _write(text):
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        # The terminal has gone.
        pass
