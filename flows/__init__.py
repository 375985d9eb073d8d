"""The Prefect layer: what runs after what. Importing it points Prefect's client at the stack of the settings."""

import os

from genmodels.settings import settings

os.environ.update(settings().client_environment())  # Prefect reads it when it is imported
