resource "aws_launch_template" "pool" {
  for_each    = var.pools
  name_prefix = "${var.name}-${each.key}-"
  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size           = each.value.disk
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }
  # One hop: a pod does not get at the role of its node.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  # The provider's default tags do not reach what a node group starts.
  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]
    content {
      resource_type = tag_specifications.value
      tags          = merge(var.tags, { Name = "${var.name}-${each.key}" })
    }
  }
}

resource "aws_eks_node_group" "this" {
  for_each        = var.pools
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnets
  instance_types  = each.value.instance_types
  ami_type        = each.value.gpu ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  capacity_type   = each.value.spot ? "SPOT" : "ON_DEMAND"
  labels          = { "bipline.dev/pool" = each.key }
  scaling_config {
    desired_size = each.value.min
    min_size     = each.value.min
    max_size     = each.value.max
  }
  update_config { max_unavailable = 1 }
  launch_template {
    id      = aws_launch_template.pool[each.key].id
    version = aws_launch_template.pool[each.key].latest_version
  }
  dynamic "taint" {
    for_each = each.value.gpu ? ["nvidia.com/gpu"] : []
    content {
      key    = taint.value
      value  = "present"
      effect = "NO_SCHEDULE"
    }
  }
  # How many nodes there are is the autoscaler's to say.
  lifecycle { ignore_changes = [scaling_config[0].desired_size] }
  depends_on = [aws_iam_role_policy_attachment.node]
}
