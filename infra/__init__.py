"""Where pipelines run beyond one machine: the Kubeflow orchestrator, and stacks as files."""
