"""The driver's inbox: nothing is lost or told out of order, and logs that nobody takes in do not pile up."""

from __future__ import annotations

import threading
import time

from mlp_core.runner.inbox import Ended, Inbox, Logged, Signalled, Started
from mlp_hookspecs import Failure

CHUNK = b"x" * 65536
LIMIT = 8 << 20


def log_until_held(inbox: Inbox) -> tuple[threading.Thread, list[int]]:
    """Have a thread log without end until the inbox is closed; return it and how much it has got rid of."""
    logged = [0]

    def flood() -> None:
        while logged[0] < 1 << 30:
            inbox.log("a/0/0", "stdout", CHUNK)
            logged[0] += len(CHUNK)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    before = -1
    while before != logged[0]:
        before = logged[0]
        time.sleep(0.1)
    return thread, logged


def taken(inbox: Inbox) -> int:
    """Take in what is there, and return how much of it is log."""
    return sum(len(message.data) for message in inbox.wait(0) if isinstance(message, Logged))


def test_logs_wait_for_the_driver() -> None:
    """Who logs more than the driver takes in waits, and goes on when it does; other messages never wait."""
    inbox = Inbox()
    thread, logged = log_until_held(inbox)
    assert 0 < logged[0] <= LIMIT
    for attempt in range(5):
        inbox.started(f"b/{attempt}/0", "host", 1)
        inbox.lost(f"b/{attempt}/0", Failure("system", "gone"))
    inbox.signalled(2)
    assert thread.is_alive()
    total = 0
    deadline = time.monotonic() + 30
    while total < 5 * LIMIT:
        assert time.monotonic() < deadline
        total += taken(inbox)
    inbox.close()
    logged[0] = 1 << 30
    thread.join(20)
    assert not thread.is_alive()


def test_closed_inbox_holds_up_nobody() -> None:
    """Once nobody takes anything in any more, who logs is not held up, and what is logged is not kept."""
    inbox = Inbox()
    thread, logged = log_until_held(inbox)
    inbox.close()
    deadline = time.monotonic() + 30
    while logged[0] <= LIMIT:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    logged[0] = 1 << 30
    thread.join(20)
    total = 0
    while got := taken(inbox):
        total += got
    assert total <= LIMIT


def test_messages_keep_their_order_over_turns() -> None:
    """However many messages there are, each comes once, in order, and no turn takes in all of them."""
    inbox = Inbox()
    for number in range(5000):
        inbox.started(f"a/{number}/0", "host", number)
        inbox.log(f"a/{number}/0", "stdout", b"x")
        inbox.lost(f"a/{number}/0", Failure("system", str(number)))
    inbox.signalled(15)
    turns = []
    while messages := inbox.wait(0):
        turns.append(messages)
    assert len(turns) > 1
    everything = [message for turn in turns for message in turn]
    kinds = [type(message) for message in everything]
    assert kinds == [Started, Logged, Ended] * 5000 + [Signalled]
    ids = [message.attempt_id for message in everything if isinstance(message, Ended)]
    assert ids == [f"a/{number}/0" for number in range(5000)]
