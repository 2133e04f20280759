variable "name" { type = string }
variable "kubernetes_version" { type = string }
variable "subnets" { type = list(string) }
variable "api_cidrs" { type = list(string) }
variable "addons" { type = map(string) }
variable "tags" { type = map(string) }
variable "pools" {
  type = map(object({
    instance_types = list(string)
    gpu            = bool
    spot           = bool
    disk           = number
    min            = number
    max            = number
  }))
}

# Secrets of the cluster are encrypted by this key before they are stored.
resource "aws_kms_key" "secrets" {
  description             = "Secrets of the cluster ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 7
}

resource "aws_eks_cluster" "this" {
  name                      = var.name
  role_arn                  = aws_iam_role.cluster.arn
  version                   = var.kubernetes_version
  enabled_cluster_log_types = ["api", "audit", "authenticator"]
  vpc_config {
    subnet_ids              = var.subnets
    endpoint_private_access = true
    endpoint_public_access  = length(var.api_cidrs) > 0
    public_access_cidrs     = length(var.api_cidrs) > 0 ? var.api_cidrs : null
  }
  encryption_config {
    resources = ["secrets"]
    provider { key_arn = aws_kms_key.secrets.arn }
  }
  depends_on = [aws_iam_role_policy_attachment.cluster]
}

resource "aws_iam_openid_connect_provider" "this" {
  url            = aws_eks_cluster.this.identity[0].oidc[0].issuer
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_eks_addon" "this" {
  for_each                 = var.addons
  cluster_name             = aws_eks_cluster.this.name
  addon_name               = each.key
  addon_version            = each.value
  service_account_role_arn = each.key == "aws-ebs-csi-driver" ? aws_iam_role.volumes.arn : null
  # Network policies of infra/k8s hold with it alone.
  configuration_values        = each.key == "vpc-cni" ? jsonencode({ enableNetworkPolicy = "true" }) : null
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "PRESERVE"
  depends_on                  = [aws_eks_node_group.this]
}

output "name" { value = aws_eks_cluster.this.name }
output "issuer" { value = aws_eks_cluster.this.identity[0].oidc[0].issuer }
output "identity_provider" { value = aws_iam_openid_connect_provider.this.arn }
output "security_group" { value = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id }
