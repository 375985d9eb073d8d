"""Prefect's command with transactions that are alone in SQLite from their start: `python -m ... server start`.

Prefect 3.8.8 begins most of them deferred and reads before it writes. SQLite refuses such a write at once if another
came in between. What was refused leaves a cursor in a cycle of garbage; if the garbage collector frees it on the event
loop's thread while its connection, in a thread of its own, waits for the lock, the loop waits for that connection and
whoever holds the lock for the loop. SQLite's patience of a minute ends that: a server that answered nobody so long,
runs that failed, and events of automations that are lost.
"""

import runpy
from typing import Any

from sqlalchemy import Connection, Engine, event


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _wait_before_reading(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    return ("BEGIN IMMEDIATE" if statement == "BEGIN DEFERRED" else statement), parameters


if __name__ == "__main__":
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
