# What infra/stacks/aws-kubeflow.yaml reads.
output "artifact_bucket" {
  description = "Bucket of artifacts, of the Store and of the watch's journal."
  value       = module.artifacts.name
}

output "ecr_registry" {
  description = "Address of the registry, without a repository."
  value       = split("/", module.registry.url)[0]
}

output "image" {
  description = "The image that steps run."
  value       = "${module.registry.url}:${var.image_tag}"
}

output "kubeflow_hostname" {
  description = "Address of the KFP API."
  value       = var.kubeflow_hostname
}

output "kubeflow_namespace" {
  description = "Namespace in which runs have their pods."
  value       = var.kubeflow_namespace
}

output "mlflow_uri" {
  description = "Address of MLflow."
  value       = var.mlflow_uri
}

# What infra/k8s reads.
output "audit_bucket" {
  description = "Bucket of audits, whose objects nobody can change for audit_days."
  value       = module.audit.name
}

output "cluster" {
  description = "Name of the cluster, for aws eks update-kubeconfig."
  value       = module.cluster.name
}

output "region" {
  description = "AWS region."
  value       = var.region
}

output "roles" {
  description = "Roles by what they are for; each is annotated at its service account."
  value       = { for name, role in module.role : name => role.arn }
}

output "databases" {
  description = "Address, name and user of each database, and the secret of AWS that holds its password."
  value       = { for name, database in module.database : name => database.connection }
}
