"""What the buttons of the demo's page do: the things that go wrong in real life, on request.

Nothing here has a private entrance: events are sent to the topic as any producer would, and the
service is killed by SIGKILL. What comes of it is read off its metrics, its page and its topic.
"""

import json
import time
from collections.abc import Callable, Mapping

from stream_forecaster.calendar import DAY_MS
from stream_forecaster.config import Settings
from stream_forecaster.demo_board import Board
from stream_forecaster.demo_page import Action, differing
from stream_forecaster.demo_service import ServiceProcess
from stream_forecaster.demo_users import Users
from stream_forecaster.errors import StreamForecasterError
from stream_forecaster.events import Reason
from stream_forecaster.synth import SyntheticEvent

_BURST = 300
_LATE, _LATE_MS = 12, 20 * 60_000
_YEAR_2031_MS = 1_924_992_000_000 + 181 * DAY_MS
_GARBAGE = (b"\xff\xfe\x00garbage", b'{"user_id": "half an obj', b"[]", b"", b"\x00" * 64)
_SOMEBODY = b"steady-0042"
_PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.1


class Trials:
    """The buttons.

    Attributes:
        tell: has the page say what is going on.
    """

    def __init__(
        self, users: Users, service: ServiceProcess, board: Board, settings: Settings
    ) -> None:
        self.tell: Callable[[str], None] = lambda _: None
        self._users, self._service, self._board = users, service, board
        self._lateness_ms = settings.input.allowed_lateness_ms

    @property
    def actions(self) -> Mapping[str, Action]:
        """By name."""
        return {
            "burst": Action("Burst", f"{_BURST} events of this key at once", self._burst),
            "late": Action("20 minutes late", f"{_LATE} events from 20 minutes ago", self._late),
            "future": Action("One from 2031", "an event whose clock is years ahead", self._future),
            "garbage": Action("Malformed bytes", "records that are no events", self._garbage),
            "kill": Action("kill -9 the worker", "and watch it come back", self._kill),
        }

    def _burst(self, key: bytes | None) -> str:
        who = key or _SOMEBODY
        self._users.say(lambda now_ms: [_event(who, now_ms, now_ms) for _ in range(_BURST)])
        return (
            f"{_BURST} events of {who.decode('utf-8', 'replace')} at once: watch the newest "
            "bucket, and the surprise."
        )

    def _late(self, key: bytes | None) -> str:
        who = key or _SOMEBODY

        def late(now_ms: int) -> list[SyntheticEvent]:
            time_ms = now_ms - max(_LATE_MS, 2 * self._lateness_ms)
            return [_event(who, now_ms, time_ms, Reason.TOO_LATE) for _ in range(_LATE)]

        self._users.say(late)
        return (
            f"{_LATE} events, 20 minutes late: their buckets are closed, so they are refused as "
            "too late and kept as dead letters. No forecast that was judged is judged again."
        )

    def _future(self, key: bytes | None) -> str:
        who = key or _SOMEBODY
        self._users.say(lambda now_ms: [_event(who, now_ms, _YEAR_2031_MS, Reason.TOO_FAR_AHEAD)])
        return (
            "One event from July 2031: refused as too far ahead. Had it been believed, it would "
            "have slammed every bucket shut."
        )

    def _garbage(self, key: bytes | None) -> str:
        def broken(now_ms: int) -> list[SyntheticEvent]:
            return [
                SyntheticEvent(now_ms, now_ms, key or _SOMEBODY, value, Reason.NOT_JSON)
                for value in _GARBAGE
            ]

        self._users.say(broken)
        return f"{len(_GARBAGE)} records that are no events: refused, and kept byte for byte."

    def _kill(self, key: bytes | None) -> str:
        del key
        with self._users.hushed():
            self.tell("The users hold their breath until all they sent is counted …")
            self._wait_until_counted()
            before = self._forecasts()
            self.tell(f"kill -9. It had {len(before)} forecasts standing.")
            begin_s = time.monotonic()
            self._service.die_and_return(_PATIENCE_S)
            seconds = time.monotonic() - begin_s
            self.tell("It is back. What does it say now?")
            after = self._forecasts()
        differ = differing(before, after)
        same = (
            f"All {len(before)} forecasts are the same as before, ids and every number"
            if not differ
            else f"{differ} of {len(before)} FORECASTS ARE NOT THE SAME"
        )
        twice = "none twice" if not self._board.twice else f"{self._board.twice} TWICE"
        return (
            f"Killed, and back after {seconds:.1f} s. {same}. "
            f"{self._board.forecasts:,} published so far, {twice}."
        )

    def _wait_until_counted(self) -> None:
        give_up_s = time.monotonic() + _PATIENCE_S
        while (readings := self._service.readings()) is None or readings.seen < self._users.total:
            if time.monotonic() > give_up_s:
                raise StreamForecasterError("the service is too far behind just now; try again")
            time.sleep(_LOOK_EVERY_S)

    def _forecasts(self) -> list[dict[str, object]]:
        said = self._service.ask("/api/forecasts", _PATIENCE_S)
        found: list[dict[str, object]] = json.loads(said or b"[]")
        if not found:
            raise StreamForecasterError("the service has no forecast yet; try again in a moment")
        return found


def _event(
    key: bytes, arrival_ms: int, time_ms: int, fault: Reason | None = None
) -> SyntheticEvent:
    fields = {
        "user_id": key.decode("utf-8", "replace"),
        "ts": time_ms,
        "type": "view",
        "item": "item-0001",
        "amount": 1.0,
    }
    return SyntheticEvent(arrival_ms, time_ms, key, json.dumps(fields).encode(), fault)
