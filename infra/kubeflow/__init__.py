"""A ZenML orchestrator over Kubeflow Pipelines 2; kfp is imported where something is compiled."""
