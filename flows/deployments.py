"""Runs that Prefect starts itself: from its pages (Run, Retry) and on schedules.

`python -m flows.deployments` takes them until it is stopped. Runs that `genmodels retrain` starts belong to the same
deployment, because Prefect's pages offer Cancel for no others, but need nobody to take them.
"""

from flows.retrain import DEPLOYMENT, retrain

if __name__ == "__main__":
    retrain.serve(DEPLOYMENT, pause_on_shutdown=False)
