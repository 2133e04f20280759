variable "name" { type = string }
variable "identifier" { type = string }
variable "instance_class" { type = string }
variable "multi_zone" { type = bool }
variable "protected" { type = bool }
variable "network" { type = string }
variable "subnets" { type = list(string) }
variable "clients" { type = string }
variable "setup" {
  type = object({
    engine  = string
    version = string
    family  = string
    port    = number
    options = map(string)
  })
}

resource "aws_db_subnet_group" "this" {
  name       = var.identifier
  subnet_ids = var.subnets
}

resource "aws_security_group" "this" {
  name        = "${var.identifier}-database"
  description = "The database ${var.identifier}"
  vpc_id      = var.network
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  security_group_id            = aws_security_group.this.id
  description                  = "Pods of the cluster"
  referenced_security_group_id = var.clients
  from_port                    = var.setup.port
  to_port                      = var.setup.port
  ip_protocol                  = "tcp"
}

resource "aws_db_parameter_group" "this" {
  name   = var.identifier
  family = var.setup.family
  dynamic "parameter" {
    for_each = var.setup.options
    content {
      name  = parameter.key
      value = parameter.value
    }
  }
}

# AWS makes the password, keeps it in a secret and changes it; it is in no file and no state.
resource "aws_db_instance" "this" {
  identifier                  = var.identifier
  engine                      = var.setup.engine
  engine_version              = var.setup.version
  instance_class              = var.instance_class
  allocated_storage           = 20
  max_allocated_storage       = 100
  storage_type                = "gp3"
  storage_encrypted           = true
  db_name                     = var.name
  username                    = var.name
  manage_master_user_password = true
  port                        = var.setup.port
  parameter_group_name        = aws_db_parameter_group.this.name
  db_subnet_group_name        = aws_db_subnet_group.this.name
  vpc_security_group_ids      = [aws_security_group.this.id]
  publicly_accessible         = false
  multi_az                    = var.multi_zone
  backup_retention_period     = 7
  copy_tags_to_snapshot       = true
  deletion_protection         = var.protected
  skip_final_snapshot         = !var.protected
  final_snapshot_identifier   = var.protected ? "${var.identifier}-last" : null
}

output "connection" {
  value = {
    address = aws_db_instance.this.address
    port    = var.setup.port
    name    = var.name
    user    = var.name
    secret  = try(aws_db_instance.this.master_user_secret[0].secret_arn, null)
  }
}
