terraform {
  required_version = ">= 1.11, < 2.0"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
  # The state is shared and locked in S3: terraform init -backend-config=backend.hcl, see README.md. It
  # holds no password; AWS makes and keeps those of the databases.
  backend "s3" {}
}

provider "aws" {
  region = var.region
  default_tags { tags = local.tags }
}
