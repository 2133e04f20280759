"""ZenML's own Kubernetes orchestrator with steps placed on pools: for clusters without Kubeflow."""
