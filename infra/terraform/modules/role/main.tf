# A role that one service account of the cluster gets, and the statements of what it may do.

variable "name" { type = string }
variable "service_account" { type = string } # namespace:name
variable "issuer" { type = string }
variable "provider_arn" { type = string }
variable "statements" {
  type = list(object({
    actions   = list(string)
    resources = list(string)
    condition = optional(map(map(string)))
  }))
}

locals {
  issuer = replace(var.issuer, "https://", "")
}

resource "aws_iam_role" "this" {
  name = var.name
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRoleWithWebIdentity"
      Principal = { Federated = var.provider_arn }
      Condition = {
        StringEquals = {
          "${local.issuer}:sub" = "system:serviceaccount:${var.service_account}"
          "${local.issuer}:aud" = "sts.amazonaws.com"
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  name = var.name
  role = aws_iam_role.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [for each in var.statements : merge(
      { Effect = "Allow", Action = each.actions, Resource = each.resources },
      each.condition == null ? {} : { Condition = each.condition },
    )]
  })
}

output "arn" { value = aws_iam_role.this.arn }
