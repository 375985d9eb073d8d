"""The local stack: SeaweedFS (S3), MLflow, Prefect and a Ray head under supervisord, on the loopback interface.

With GENMODELS_BIND the pages of MLflow, Prefect and Ray are on another one, and only with a login to each. All other
ports stay, those of SeaweedFS among them: the one by which it is administered has no login.
Everything lies under one folder, `GENMODELS_HOME`: data, logs, the supervisor's configuration and `stack.json`, which
tells every other command the addresses and credentials. Files with secrets have mode 0600, and no secret is on a
command line.
"""
