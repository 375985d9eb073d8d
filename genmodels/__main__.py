"""`python -m genmodels`: the same as the `genmodels` command."""

from genmodels.cli import main

main()
