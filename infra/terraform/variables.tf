variable "name" {
  description = "What everything is called; the first part of every name."
  type        = string
  default     = "bipline"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: 3 to 20 lower-case letters, digits and hyphens, a letter first."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "zones" {
  description = "Availability zones of the region, at least two: EKS and RDS ask for it."
  type        = list(string)
  default     = ["us-east-1a", "us-east-1b"]
  validation {
    condition     = length(var.zones) >= 2 && alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "zones: at least two zones of the region, such as us-east-1a."
  }
}

variable "cidr" {
  description = "Addresses of the network; a /16 leaves each private subnet 4,096."
  type        = string
  default     = "10.42.0.0/16"
}

variable "nat_per_zone" {
  description = "One NAT gateway for each zone rather than one for all. Costs about 33 dollars a month each."
  type        = bool
  default     = false
}

variable "kubernetes_version" {
  description = "Kubernetes of the cluster. Take one that EKS supports today; older ones cost more."
  type        = string
  default     = "1.34"
}

variable "api_cidrs" {
  description = "Addresses from which the cluster's API is reached from outside. Empty: from the network alone."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for each in var.api_cidrs : can(cidrnetmask(each)) && try(tonumber(split("/", each)[1]), 0) >= 8])
    error_message = "api_cidrs: your own addresses, such as 192.0.2.10/32; /8 and narrower, so that the API is not everybody's."
  }
}

variable "pools" {
  description = "Node pools by name, as infra/stacks/aws-kubeflow.yaml lists them. disk is in GiB."
  type = map(object({
    instance_types = list(string)
    gpu            = optional(bool, false)
    spot           = optional(bool, false)
    disk           = optional(number, 200)
    min            = optional(number, 0)
    max            = optional(number, 4)
  }))
  default = {
    cpu-small = { instance_types = ["m6i.xlarge"], min = 2, max = 6 }
    cpu-large = { instance_types = ["m6i.8xlarge"], disk = 1000 }
    # Two types with the same memory: one more place where spot capacity may be left.
    gpu-spot  = { instance_types = ["g5.2xlarge", "g6.2xlarge"], gpu = true, spot = true, disk = 500, max = 8 }
    gpu-large = { instance_types = ["p4de.24xlarge"], gpu = true, disk = 2000, max = 1 }
  }
  validation {
    condition     = alltrue([for pool in var.pools : pool.min == 0 if pool.gpu])
    error_message = "pools: a GPU pool rests at zero nodes (min = 0)."
  }
  validation {
    condition     = anytrue([for pool in var.pools : pool.min > 0 && !pool.gpu])
    error_message = "pools: one CPU pool needs min of 1 or more; the servers and the autoscaler run there."
  }
}

variable "addons" {
  description = "EKS add-ons and their versions; null takes the default of the Kubernetes version."
  type        = map(string)
  default = {
    vpc-cni            = null
    kube-proxy         = null
    coredns            = null
    aws-ebs-csi-driver = null
  }
}

variable "database_class" {
  description = "Instance class of both databases."
  type        = string
  default     = "db.t4g.small"
}

variable "databases" {
  description = "Databases by the server that uses each. ZenML takes MySQL alone."
  type = map(object({
    engine  = string
    version = string
    family  = string
    port    = number
    options = map(string)
  }))
  default = {
    mlflow = { engine = "postgres", version = "15", family = "postgres15", port = 5432, options = { "rds.force_ssl" = "1" } }
    zenml  = { engine = "mysql", version = "8.0", family = "mysql8.0", port = 3306, options = { require_secure_transport = "1" } }
  }
}

variable "multi_zone" {
  description = "A standby of each database in a second zone. Doubles what they cost."
  type        = bool
  default     = false
}

variable "protected" {
  description = "Databases and buckets that hold something are not destroyed. Set to false before tearing down."
  type        = bool
  default     = true
}

variable "audit_days" {
  description = "Days for which nobody can remove or change an object of the audit bucket."
  type        = number
  default     = 365
}

variable "audit_mode" {
  description = "GOVERNANCE: those with a permission of their own may still shorten it. COMPLIANCE: nobody can, the account's owner included."
  type        = string
  default     = "GOVERNANCE"
  validation {
    condition     = contains(["GOVERNANCE", "COMPLIANCE"], var.audit_mode)
    error_message = "audit_mode: GOVERNANCE or COMPLIANCE."
  }
}

variable "old_version_days" {
  description = "Days for which overwritten and deleted artifacts can be brought back. 0: for ever, and paid for."
  type        = number
  default     = 30
}

variable "image_tag" {
  description = "Tag of the image that steps run."
  type        = string
  default     = "0.1.0"
}

variable "kubeflow_hostname" {
  description = "Address of the KFP API, for the stack. The default is reached from within the cluster."
  type        = string
  default     = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
}

variable "kubeflow_namespace" {
  description = "Namespace of Kubeflow Pipelines and of the pods of its runs."
  type        = string
  default     = "kubeflow"
}

variable "mlflow_uri" {
  description = "Address of MLflow, for the stack. The default is reached from within the cluster."
  type        = string
  default     = "http://mlflow.mlflow.svc.cluster.local:5000"
}

variable "budget_dollars" {
  description = "Dollars a month, of what carries this project's tag."
  type        = number
  default     = 1000
}

variable "budget_emails" {
  description = "Who is told at 80 % of the budget, and when more than all of it is forecast. Empty: no budget."
  type        = list(string)
  default     = []
}

variable "tags" {
  description = "Further tags of everything."
  type        = map(string)
  default     = {}
}
