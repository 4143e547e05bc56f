import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_selfimprove.budget import Budget, Ledger, Spend
from dspy_selfimprove.errors import BudgetExhausted, UsageError

amounts = st.tuples(st.integers(0, 500), st.integers(0, 500))


@given(st.integers(1, 5_000), st.lists(st.tuples(amounts, st.sampled_from(["settle", "release", "hold"])), max_size=40))
def test_a_cap_is_passed_by_no_more_than_calls_in_flight_cost_beyond_their_reservation(cap, calls):
    ledger = Ledger(Budget(tokens=cap))
    beyond, held = 0, []
    for (reserved, used), fate in calls:
        try:
            reservation = ledger.reserve("worker", tokens=reserved)
        except BudgetExhausted:
            assert ledger.total.tokens + sum(amount for _, amount in held) + reserved > cap
            continue
        if fate == "settle":
            ledger.settle(reservation, tokens=used)
            beyond += max(0, used - reserved)
        elif fate == "release":
            ledger.release(reservation)
        else:
            held.append((reservation, reserved))
        assert ledger.total.tokens <= cap + beyond
    assert ledger.in_flight == len(held)


def test_the_cap_on_calls_holds_under_threads():
    ledger = Ledger(Budget(calls=100))
    refused = []

    def work():
        for _ in range(30):
            try:
                ledger.settle(ledger.reserve("judge"), tokens=3)
            except BudgetExhausted:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.total == Spend(100, 300, 0.0)
    assert len(refused) == 8 * 30 - 100


def test_roles_are_kept_apart_and_capped_together():
    ledger = Ledger(Budget(dollars=1.0))
    ledger.settle(ledger.reserve("worker", dollars=0.4), dollars=0.4)
    ledger.settle(ledger.reserve("coach", dollars=0.6), dollars=0.6)
    assert ledger.spent == {"worker": Spend(1, 0, 0.4), "judge": Spend(), "coach": Spend(1, 0, 0.6)}
    with pytest.raises(BudgetExhausted, match=r"budget of 1 dollars has no room for the next call \(1 spent"):
        ledger.reserve("judge", dollars=0.01)


def test_room_held_in_flight_may_come_back():
    ledger = Ledger(Budget(tokens=100))
    held = ledger.reserve("worker", tokens=90)
    with pytest.raises(BudgetExhausted) as caught:
        ledger.reserve("worker", tokens=50)
    assert not caught.value.final
    ledger.settle(held, tokens=10)
    ledger.settle(ledger.reserve("worker", tokens=50), tokens=50)
    with pytest.raises(BudgetExhausted) as caught:
        ledger.reserve("worker", tokens=50)
    assert caught.value.final


def test_ten_dimes_fit_into_a_dollar():
    ledger = Ledger(Budget(dollars=1.0))
    for _ in range(10):
        ledger.settle(ledger.reserve("worker", dollars=0.1), dollars=0.1)


def test_time_is_a_cap_and_can_be_virtual():
    now = [0.0]
    ledger = Ledger(Budget(seconds=10), clock=lambda: now[0])
    ledger.release(ledger.reserve("worker"))
    now[0] = 10.0
    with pytest.raises(BudgetExhausted, match="10 seconds"):
        ledger.reserve("worker")


def test_a_resumed_run_starts_from_what_was_spent():
    ledger = Ledger(Budget(calls=5))
    ledger.restore({"worker": Spend(4, 10, 0.1)})
    ledger.settle(ledger.reserve("worker"))
    with pytest.raises(BudgetExhausted):
        ledger.reserve("worker")


def test_mistakes_are_refused():
    with pytest.raises(UsageError, match="positive"):
        Budget(calls=0)
    with pytest.raises(UsageError, match="positive"):
        Budget(dollars=float("nan"))
    with pytest.raises(UsageError, match="positive"):
        Budget(calls="3")
    ledger = Ledger()
    reservation = ledger.reserve("worker")
    ledger.release(reservation)
    with pytest.raises(UsageError, match="closed before"):
        ledger.settle(reservation)
