"""MLflow: runs, model packaging, registry, promotion."""
