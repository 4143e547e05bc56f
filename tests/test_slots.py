import asyncio
import threading
import time

import pytest

from dspy_selfimprove.errors import UsageError
from dspy_selfimprove.slots import Slots, Waits


def test_never_more_in_flight_than_slots_for_threads_and_a_loop_together():
    slots = Slots(3)
    running, most, lock = [0], [0], threading.Lock()

    def enter():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])

    def leave():
        with lock:
            running[0] -= 1
        slots.give()

    def from_a_thread():
        for _ in range(20):
            slots.ask().result()
            enter()
            time.sleep(0.001)
            leave()

    async def task():
        for _ in range(20):
            await asyncio.wrap_future(slots.ask())
            enter()
            await asyncio.sleep(0.001)
            leave()

    async def on_a_loop():
        await asyncio.gather(*(task() for _ in range(5)))

    threads = [threading.Thread(target=from_a_thread) for _ in range(5)] + [
        threading.Thread(target=lambda: asyncio.run(on_a_loop()))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 3
    assert slots.busy == 0
    assert 0 < slots.share_busy <= 1


def test_first_come_first_served():
    slots = Slots(1)
    slots.ask().result()
    turns = [slots.ask() for _ in range(3)]
    slots.give()
    assert [turn.done() for turn in turns] == [True, False, False]


def test_whoever_stops_waiting_takes_no_slot_along():
    slots = Slots(1)
    slots.ask().result()
    early, late = slots.ask(), slots.ask()
    slots.leave(early)
    slots.give()
    assert late.done()
    slots.leave(late)  # it had its slot already: it goes back
    assert slots.busy == 0


async def test_a_cancelled_task_takes_no_slot_along():
    slots = Slots(1)
    slots.ask().result()

    async def wait():
        turn = slots.ask()
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            slots.leave(turn)
            raise

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slots.give()
    assert slots.busy == 0


def test_the_share_of_time_in_use_is_measured():
    now = [0.0]
    slots = Slots(2, clock=lambda: now[0])
    slots.ask().result()
    now[0] = 10.0
    slots.give()
    now[0] = 20.0
    assert slots.share_busy == pytest.approx(10 / 40)


def test_waits_are_the_time_without_a_slot_that_was_wanted():
    now = [0.0]

    def pass_(seconds):
        now[0] += seconds

    slots, waits = Slots(2), Waits(clock=lambda: now[0])
    others = [slots.ask(), slots.ask()]  # somebody else's
    with waits.watched():
        pass_(1)  # it wants nothing yet
        first, second = slots.ask(), slots.ask()
        pass_(2)  # it has none
    assert waits.seconds == 2
    slots.give()  # one of the others gave theirs
    assert first.done()
    pass_(4)  # it has one and wants another
    assert waits.seconds == 2
    with waits.watched():
        slots.leave(second)
        slots.give()  # its own
        pass_(8)
        assert slots.ask().done()
        slots.give()
    assert waits.seconds == 2
    assert len(others) == 2
    assert slots.busy == 1


def test_whoever_gives_up_waits_no_longer():
    now = [0.0]
    slots, waits = Slots(1), Waits(clock=lambda: now[0])
    slots.ask().result()
    with waits.watched():
        turn = slots.ask()
        now[0] = 3.0
        slots.leave(turn)
        now[0] = 9.0
    assert waits.seconds == 3


def test_no_slots_is_a_mistake():
    with pytest.raises(UsageError, match="0 slots"):
        Slots(0)
