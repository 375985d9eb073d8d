"""The flow of retention: what nobody needs any more is listed, and taken away if that is asked for."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from genmodels.errors import GenmodelsError
from genmodels.steps import prune as retention

EXAMPLES = 20


@flow(name="prune", persist_result=False)
def prune(dry_run: bool = True, older_than_days: Annotated[int, Field(ge=1)] = 30) -> State:
    """Take away old checkpoints, raw files that no data set names and what was staged and never became whole. What a
    registered version needs stays.

    Args:
        dry_run: Only list what would go.
        older_than_days: What was written to since then stays.
    """
    try:
        report = retention.prune(older_than_days=older_than_days, dry_run=dry_run)
    except GenmodelsError as error:
        return Failed(message=f"{'Nothing was listed' if dry_run else 'Not all was removed'}: {error}", data=error)
    rows = [
        {
            "what": kind,
            "objects": len(keys),
            "MB": round(report.bytes.get(kind, 0) / 1e6, 1),
            "such as": ", ".join(keys[:EXAMPLES]),
        }
        for kind, keys in report.objects.items()
    ]
    verb = "would be removed (dry run)" if dry_run else "were removed"
    count, megabytes = sum(map(len, report.objects.values())), sum(report.bytes.values()) / 1e6
    message = f"{count:,} objects with {megabytes:,.1f} MB {verb}."
    create_table_artifact(rows, "prune", message)
    return Completed(message=message)
