"""The Prefect layer: what runs after what. Importing it points Prefect's client at the stack of the settings."""

import os

from genmodels.settings import settings

settings().home.mkdir(mode=0o700, parents=True, exist_ok=True)  # for Prefect's own folder, which it makes itself
os.environ.update(settings().client_environment())  # Prefect reads it when it is imported
