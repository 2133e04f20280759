# terraform test: the whole stack against a provider that is mocked, without an account.

mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = {
      identity   = [{ oidc = [{ issuer = "https://oidc.example/id/X" }] }]
      vpc_config = { cluster_security_group_id = "sg-cluster" }
    }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/mocked" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:us-east-1:123456789012:key/mocked" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-1", latest_version = 1 }
  }
  mock_resource "aws_ecr_repository" {
    defaults = { repository_url = "123456789012.dkr.ecr.us-east-1.amazonaws.com/bipline/pipeline" }
  }
}

run "stack" {
  variables {
    budget_emails = ["ml@example.org"]
    api_cidrs     = ["192.0.2.10/32"]
  }
  assert {
    condition     = output.image == "123456789012.dkr.ecr.us-east-1.amazonaws.com/bipline/pipeline:0.1.0"
    error_message = "the image is in the registry, with the tag asked for"
  }
  assert {
    condition     = output.ecr_registry == "123456789012.dkr.ecr.us-east-1.amazonaws.com"
    error_message = "the registry is named without a repository"
  }
  assert {
    condition     = output.artifact_bucket == "bipline-123456789012-artifacts"
    error_message = "a bucket's name has the account in it"
  }
  assert {
    condition     = alltrue([for name in ["pipeline", "watch", "audit", "mlflow", "zenml"] : contains(keys(output.roles), name)])
    error_message = "every service account has a role"
  }
  assert {
    condition     = aws_budgets_budget.month[0].limit_amount == "1000"
    error_message = "somebody who is to be told makes a budget"
  }
}

run "what_is_refused" {
  command = plan
  variables {
    name      = "B"
    zones     = ["us-east-1a"]
    api_cidrs = ["0.0.0.0/0"]
    # A GPU pool that never rests, and no other.
    pools      = { gpu = { instance_types = ["g5.2xlarge"], gpu = true, min = 1 } }
    audit_mode = "NONE"
  }
  expect_failures = [var.name, var.zones, var.api_cidrs, var.pools, var.audit_mode]
}
