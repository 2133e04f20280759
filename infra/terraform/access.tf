# What each service account may do, and nothing beside. A pod gets the role of its service account by
# the cluster's own identity provider; no key is written anywhere.

locals {
  look = {
    actions   = ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    resources = [local.artifacts_arn]
  }
  read  = ["s3:GetObject", "s3:GetObjectVersion"]
  write = concat(local.read, ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"])

  roles = {
    # Steps of runs: all artifacts.
    pipeline = {
      account    = "${var.kubeflow_namespace}:pipeline-runner"
      statements = [local.look, { actions = local.write, resources = ["${local.artifacts_arn}/*"] }]
    }
    # The watch keeps its journal and starts runs: before one it writes, reads and removes a small object
    # of the artifact store, and asks whether the image is there.
    watch = {
      account = "bipline:bipline-watch"
      statements = [
        local.look,
        { actions = local.write, resources = ["${local.artifacts_arn}/zenml/*", "${local.artifacts_arn}/watch/*"] },
        {
          actions   = ["ecr:DescribeImages"]
          resources = ["arn:aws:ecr:${var.region}:${local.account}:repository/${var.name}/pipeline"]
        },
      ]
    }
    # The audit: reads everything, adds its findings, and can remove nothing of either.
    audit = {
      account = "bipline:bipline-audit"
      statements = [
        local.look,
        { actions = local.read, resources = ["${local.artifacts_arn}/*"] },
        { actions = ["s3:PutObject"], resources = ["${local.audit_arn}/*"] },
      ]
    }
    mlflow = {
      account    = "mlflow:mlflow"
      statements = [local.look, { actions = local.write, resources = ["${local.artifacts_arn}/mlflow/*"] }]
    }
    # ZenML's server shows logs and reports of steps.
    zenml = {
      account    = "zenml:zenml"
      statements = [local.look, { actions = local.read, resources = ["${local.artifacts_arn}/zenml/*"] }]
    }
    cluster-autoscaler = {
      account = "kube-system:cluster-autoscaler"
      statements = [
        # AWS knows no resource for these; they tell, and change nothing.
        {
          actions = [
            "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances",
            "autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeScalingActivities",
            "autoscaling:DescribeTags", "ec2:DescribeImages", "ec2:DescribeInstanceTypes",
            "ec2:DescribeLaunchTemplateVersions", "ec2:GetInstanceTypesFromInstanceRequirements",
          ]
          resources = ["*"]
        },
        # By this it knows the labels and taints of a pool that has no node.
        {
          actions   = ["eks:DescribeNodegroup"]
          resources = ["arn:aws:eks:${var.region}:${local.account}:nodegroup/${var.name}/*/*"]
        },
        {
          actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
          resources = ["arn:aws:autoscaling:${var.region}:${local.account}:autoScalingGroup:*:autoScalingGroupName/eks-*"]
          condition = { StringEquals = { "aws:ResourceTag/eks:cluster-name" = var.name } }
        },
      ]
    }
  }
}

module "role" {
  source          = "./modules/role"
  for_each        = local.roles
  name            = "${var.name}-${each.key}"
  service_account = each.value.account
  statements      = each.value.statements
  issuer          = module.cluster.issuer
  provider_arn    = module.cluster.identity_provider
}
