"""Prefect's server of the local stack, when several write at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text

import genmodels.stack.prefect_on_sqlite  # noqa: F401  (what is tested)
from genmodels.settings import Settings


def test_who_has_read_is_not_refused_the_write_that_follows(tmp_path: Path):
    """A deferred transaction would be, once the other has written."""
    prefect = AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path}/prefect.db")
    insert, count = text("INSERT INTO runs VALUES (1)"), text("SELECT count(*) FROM runs")

    async def write() -> None:
        async with await prefect.session(await prefect.engine()) as session, prefect.begin_transaction(session):
            await session.execute(insert)

    async def read_and_write() -> int:
        engine = await prefect.engine()
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TABLE runs (number INTEGER)"))
        async with await prefect.session(engine) as session:
            async with prefect.begin_transaction(session):
                assert (await session.execute(count)).scalar() == 0
                other = asyncio.create_task(write())
                await asyncio.wait([other], timeout=0.5)
                await session.execute(insert)
            await other
            return (await session.execute(count)).scalar_one()

    assert asyncio.run(read_and_write()) == 2


def test_no_run_is_refused_because_others_are_created_at_the_same_time(stack: Settings):
    api, client = stack.prefect_api_url, requests.Session()
    flow = client.post(f"{api}/flows/", json={"name": "crowd"}, timeout=60).json()["id"]

    def create(number: int) -> int:
        state = {"type": "PENDING", "name": "Pending"}
        return requests.post(f"{api}/flow_runs/", json={"flow_id": flow, "state": state}, timeout=60).status_code

    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(create, range(160)))
    assert answers == [201] * 160
