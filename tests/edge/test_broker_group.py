"""A consumer group's rounds on a clock of the test's own: what takes how long, and who is in."""

from typing import Any

import pytest

from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.group import Group
from stream_forecaster.edge.broker.members import Application, Caller, Joined, State, Synced

DELAY_S = 0.1
SESSION_S, REBALANCE_S = 10.0, 60.0


class Rounds:
    """A group and what it has answered to whom."""

    def __init__(self) -> None:
        self.group = Group("g", DELAY_S)
        self.joined: dict[str, Joined] = {}
        self.synced: dict[str, Synced] = {}

    def join(self, name: str, now_s: float, *, static: bool = False, **ids: Any) -> None:
        """Join as `name`, under the id of an earlier answer if there was one."""
        earlier = self.joined.pop(name, None)
        member_id = earlier.member_id if earlier is not None else ""
        self.group.join(
            Caller(**({"member_id": member_id, "instance_id": name if static else None} | ids)),
            Application(name, SESSION_S, REBALANCE_S, "consumer", {"range": name.encode()}),
            lambda answer: self.joined.update({name: answer}),
            needs_id=False,
            now_s=now_s,
        )

    def sync(self, name: str, now_s: float) -> None:
        """Sync as `name`, with an assignment for everybody."""
        joined = self.joined[name]
        self.group.sync(
            self.caller(name),
            {m: b"share of %s" % metadata for m, (_, metadata) in joined.members.items()},
            lambda answer: self.synced.update({name: answer}),
            now_s,
        )

    def caller(self, name: str) -> Caller:
        """Who `name` is since it joined."""
        member = self.group.members.get(self.joined[name].member_id)
        instance_id = member.instance_id if member is not None else None
        return Caller(self.joined[name].member_id, self.joined[name].generation, instance_id)


def stable(*names: str, static: bool = False) -> Rounds:
    """A group of these members, joined at 0 s and synced; the first of them leads."""
    rounds = Rounds()
    for name in names:
        rounds.join(name, 0.0, static=static)
    rounds.group.tick(DELAY_S)
    for name in names:
        rounds.sync(name, DELAY_S)
    assert rounds.group.state is State.STABLE
    return rounds


def test_the_first_members_wait_for_others() -> None:
    """Each that comes makes them wait once more.

    0        50 ms      100       150
    |---------|----------|---------|
    a joins   b joins              both are answered
    """
    rounds = Rounds()

    rounds.join("a", 0.0)
    rounds.join("b", 0.05)
    rounds.group.tick(0.1)
    early = dict(rounds.joined)
    rounds.group.tick(0.151)

    assert early == {}
    assert [rounds.joined[name].generation for name in "ab"] == [1, 1]


def test_a_stream_of_newcomers_does_not_hold_the_first_up_for_ever() -> None:
    """Their rebalance time-out is the longest that they wait."""
    rounds = Rounds()

    for i in range(700):
        rounds.join(f"m{i}", i * DELAY_S * 0.9)
        rounds.group.tick(i * DELAY_S * 0.9)
        if rounds.joined:
            break

    assert 0.9 * REBALANCE_S <= i * DELAY_S * 0.9 <= REBALANCE_S + DELAY_S


def test_the_leader_assigns_for_all() -> None:
    """Each is answered with its own share."""
    rounds = stable("a", "b")

    assert rounds.synced == {
        "a": Synced(Code.NONE, b"share of a"),
        "b": Synced(Code.NONE, b"share of b"),
    }


def test_who_does_not_join_again_in_time_is_out() -> None:
    """The others wait for the rebalance time-out, and no longer."""
    rounds = stable("a", "b")
    rounds.join("c", 1.0)
    rounds.join("a", 2.0)
    for now_s in range(2, 60):  # b keeps saying that it is there
        with pytest.raises(Refused):
            rounds.group.heartbeat(rounds.caller("b"), now_s)
        rounds.group.tick(now_s)

    waiting = "c" not in rounds.joined
    rounds.group.tick(1.0 + REBALANCE_S)

    assert waiting
    assert sorted(m.application.client_id for m in rounds.group.members.values()) == ["a", "c"]
    assert rounds.joined["c"].generation == 2


def test_a_static_member_that_is_late_stays_in() -> None:
    """It keeps its share until its session ends: it is being restarted."""
    rounds = stable("a", "b", static=True)
    rounds.join("a", 1.0, static=True)
    with pytest.raises(Refused):
        rounds.group.heartbeat(rounds.caller("b"), REBALANCE_S)

    rounds.group.tick(1.0 + REBALANCE_S)

    members = rounds.joined["a"].members
    assert {instance_id for instance_id, _ in members.values()} == {"a", "b"}


def test_a_silent_member_is_expired_by_its_own_session() -> None:
    """To the second."""
    rounds = stable("a", "b")
    rounds.group.heartbeat(rounds.caller("a"), 5.0)

    rounds.group.tick(DELAY_S + SESSION_S - 0.01)
    before = len(rounds.group.members)
    rounds.group.tick(DELAY_S + SESSION_S)

    assert before == 2
    assert [m.application.client_id for m in rounds.group.members.values()] == ["a"]


def test_sessions_begin_anew_after_the_brokers_own_absence() -> None:
    """The members could not have reached it."""
    rounds = stable("a")

    rounds.group.renew_sessions(1000.0)
    rounds.group.tick(1000.0)

    assert rounds.group.state is State.STABLE


def test_a_group_whose_last_member_has_left_is_empty() -> None:
    """Its generation goes on counting, so that nothing of the past fits again."""
    rounds = stable("a")

    rounds.group.leave(rounds.caller("a"), 1.0)
    rounds.join("b", 2.0)
    rounds.group.tick(2.0 + DELAY_S)

    assert rounds.joined["b"].generation == 3
