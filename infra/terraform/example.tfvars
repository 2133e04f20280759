# terraform plan -var-file=example.tfvars
api_cidrs      = ["192.0.2.10/32"]
budget_dollars = 500
budget_emails  = ["ml@example.org"]
tags           = { team = "research" }
