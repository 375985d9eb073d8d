"""The flow that makes a registered version champion because a person says so: a rollback, most often."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from genmodels.errors import GenmodelsError
from genmodels.tracking.promotion import appoint

Version = Annotated[str, Field(pattern=r"^[^@]+@[^@]+$", examples=["progressive_gan.digits@3"])]


@flow(name="promote", flow_run_name="promote-{version}", persist_result=False)
def promote(version: Version, because: str = "") -> State:
    """Make a registered version the champion in one step, whatever its numbers; what was champion becomes `previous`.

    Args:
        version: NAME@VERSION, such as progressive_gan.digits@3; NAME@previous puts the last champion back.
        because: Why, for the record.
    """
    try:
        promotion = appoint(version, because)
    except GenmodelsError as error:
        return Failed(message=f"No champion was changed: {error}", data=error)
    title = f"{promotion.name} version {promotion.version} is the champion"
    create_markdown_artifact(f"# {title}\n\n{promotion.reason}\n", "promotion-by-hand", title)
    return Completed(message=promotion.reason)
