"""The kinds of parameters that flows share, as Prefect's forms offer them and its server checks them."""

from typing import Annotated, Literal

from pydantic import Field

from genmodels.data.catalogue import CATALOGUE
from genmodels.models import MODELS

PRESETS = {preset: None for model in MODELS.values() for preset in model.Config.presets}

Model = Annotated[str, Field(json_schema_extra={"enum": [*MODELS]})]
Dataset = Annotated[str, Field(min_length=1, examples=[*CATALOGUE, "folder:PATH", "s3://BUCKET/PREFIX"])]
Preset = Annotated[str, Field(json_schema_extra={"enum": [*PRESETS]})]
SETTINGS = ["resolution=32", "training.precision=bf16", "evaluation.iwae_samples=50"]
Override = Annotated[str, Field(pattern=r"^[^=]+=", examples=SETTINGS)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Workers = Annotated[int, Field(ge=1)]
PromotionBy = Literal["automatic", "manual"]
Hours = Annotated[float, Field(gt=0)]
