data "aws_caller_identity" "account" {}

locals {
  account = data.aws_caller_identity.account.account_id
  tags    = merge({ project = var.name, managed-by = "terraform" }, var.tags)
  # Names of buckets are the whole world's; with the account in them they are ours. They are put
  # together here, so that a plan shows every policy before anything exists.
  artifacts     = "${var.name}-${local.account}-artifacts"
  audit         = "${var.name}-${local.account}-audit"
  artifacts_arn = "arn:aws:s3:::${local.artifacts}"
  audit_arn     = "arn:aws:s3:::${local.audit}"
}

module "network" {
  source       = "./modules/network"
  name         = var.name
  region       = var.region
  zones        = var.zones
  cidr         = var.cidr
  nat_per_zone = var.nat_per_zone
}

module "cluster" {
  source             = "./modules/cluster"
  name               = var.name
  kubernetes_version = var.kubernetes_version
  subnets            = module.network.private_subnets
  api_cidrs          = var.api_cidrs
  pools              = var.pools
  addons             = var.addons
  tags               = local.tags
}

module "artifacts" {
  source           = "./modules/bucket"
  name             = local.artifacts
  old_version_days = var.old_version_days
  force_destroy    = !var.protected
}

module "audit" {
  source           = "./modules/bucket"
  name             = local.audit
  lock_days        = var.audit_days
  lock_mode        = var.audit_mode
  old_version_days = var.old_version_days > 0 ? var.audit_days + var.old_version_days : 0
  force_destroy    = !var.protected
}

module "registry" {
  source        = "./modules/registry"
  name          = "${var.name}/pipeline"
  force_destroy = !var.protected
}

module "database" {
  source         = "./modules/database"
  for_each       = var.databases
  name           = each.key
  identifier     = "${var.name}-${each.key}"
  setup          = each.value
  instance_class = var.database_class
  multi_zone     = var.multi_zone
  protected      = var.protected
  network        = module.network.id
  subnets        = module.network.private_subnets
  # Pods have the security group of the cluster; nobody else reaches a database.
  clients = module.cluster.security_group
}

resource "aws_budgets_budget" "month" {
  count        = length(var.budget_emails) > 0 ? 1 : 0
  name         = "${var.name}-month"
  budget_type  = "COST"
  limit_amount = tostring(var.budget_dollars)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"
  cost_filter {
    name   = "TagKeyValue"
    values = [format("user:project$%s", var.name)]
  }
  dynamic "notification" {
    for_each = { ACTUAL = 80, FORECASTED = 100 }
    content {
      notification_type          = notification.key
      threshold                  = notification.value
      threshold_type             = "PERCENTAGE"
      comparison_operator        = "GREATER_THAN"
      subscriber_email_addresses = var.budget_emails
    }
  }
}
