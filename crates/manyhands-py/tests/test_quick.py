"""Sessions of proxies: one write and one read instead of two, and the same messages."""

import gc
import multiprocessing
import os
import threading
import weakref

import pytest
from manyhands._quick import _Session, dumps, frame


@pytest.fixture
def ends():
    """A session and the other end of its connection."""
    session, other = multiprocessing.Pipe()
    session.__class__ = _Session
    with session, other:
        yield session, other


def test_messages_are_those_of_the_standard_connection(ends):
    session, other = ends
    for message in (None, ("id", "put", ([1, 2],), {}), threading.Event, b"x" * 100_000):
        sender = threading.Thread(target=session.send, args=(message,))
        sender.start()
        assert other.recv() == message
        sender.join()
        sender = threading.Thread(target=other.send, args=(message,))
        sender.start()
        assert session.recv() == message
        sender.join()


def test_messages_that_arrive_together_are_told_apart(ends):
    session, other = ends
    os.write(other.fileno(), b"".join(frame(dumps(number)) for number in range(3)))
    assert [session.recv() for _ in range(3)] == [0, 1, 2]


def test_a_message_that_arrives_in_pieces_is_put_together(ends):
    session, other = ends
    message = b"".join(frame(dumps(text)) for text in ("first", "second"))

    def send():
        for place in range(len(message)):
            os.write(other.fileno(), message[place : place + 1])

    sender = threading.Thread(target=send)
    sender.start()
    assert [session.recv(), session.recv()] == ["first", "second"]
    sender.join()


def test_the_end_of_a_connection_is_what_it_is_elsewhere(ends):
    session, other = ends
    other.close()
    with pytest.raises(EOFError):
        session.recv()


def test_an_end_within_a_message_is_an_error(ends):
    session, other = ends
    os.write(other.fileno(), frame(b"long enough")[:-3])
    other.close()
    with pytest.raises(OSError, match="end of file"):
        session.recv()


def test_an_object_may_pickle_others_while_it_is_pickled(ends):
    session, other = ends
    session.send(Nested())
    assert other.recv() == b"inner"
    session.send("after")
    assert other.recv() == "after"


class Nested:
    def __reduce__(self):
        return bytes, (multiprocessing.reduction.ForkingPickler.loads(dumps(b"inner")),)


def test_what_was_pickled_is_not_kept_alive():
    held = Nested()
    gone = weakref.ref(held)
    dumps([held])
    del held
    gc.collect()
    assert gone() is None
