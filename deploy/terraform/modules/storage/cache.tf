# Valkey for Ray's cluster state (GCS), so that a new head finds what the lost one knew.

resource "aws_elasticache_subnet_group" "this" {
  name        = var.cluster_name
  description = "Private subnets of ${var.cluster_name}"
  subnet_ids  = var.subnet_ids
}

resource "aws_security_group" "cache" {
  name_prefix = "${var.cluster_name}-cache-"
  description = "Valkey, for the pods of the cluster"
  vpc_id      = var.vpc_id

  tags = { Name = "${var.cluster_name}-cache" }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "cache" {
  security_group_id            = aws_security_group.cache.id
  description                  = "Valkey from the cluster"
  referenced_security_group_id = var.client_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 6379
  to_port                      = 6379
}

resource "aws_elasticache_parameter_group" "this" {
  name        = "${var.cluster_name}-valkey8"
  description = "Refuses writes where memory is short, and forgets nothing: it is a store here, not a cache"
  family      = "valkey8"

  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }
}

# ElastiCache makes no token of its own, so this one is in the state: the backend must be encrypted and private.
resource "random_password" "valkey" {
  length  = 48
  special = false
}

resource "aws_secretsmanager_secret" "valkey" {
  #checkov:skip=CKV2_AWS_57:a rotation takes a function of ours and restarts Ray's head; the token is changed by hand, with `terraform apply -replace` and apply_now
  name        = "${var.cluster_name}/valkey"
  description = "Auth token of ${var.cluster_name}'s Valkey"
  kms_key_id  = aws_kms_key.data.arn
  # With 0 the name is free again at once, for whoever sets the same cluster up anew.
  recovery_window_in_days = var.keep_data ? 7 : 0
}

resource "aws_secretsmanager_secret_version" "valkey" {
  secret_id     = aws_secretsmanager_secret.valkey.id
  secret_string = random_password.valkey.result
}

resource "aws_elasticache_replication_group" "this" {
  replication_group_id = var.cluster_name
  description          = "Ray's cluster state of ${var.cluster_name}"

  engine               = "valkey"
  engine_version       = "8.0"
  node_type            = var.cache_node_type
  port                 = 6379
  parameter_group_name = aws_elasticache_parameter_group.this.name

  # One shard: Ray's address is one host.
  num_cache_clusters         = var.multi_zone ? 2 : 1
  automatic_failover_enabled = var.multi_zone
  multi_az_enabled           = var.multi_zone

  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  auth_token                 = random_password.valkey.result
  at_rest_encryption_enabled = true
  kms_key_id                 = aws_kms_key.data.arn

  subnet_group_name          = aws_elasticache_subnet_group.this.name
  security_group_ids         = [aws_security_group.cache.id]
  snapshot_retention_limit   = 1
  auto_minor_version_upgrade = true
  maintenance_window         = var.maintenance_window
  # A restart takes Ray's head along. A new token is taken at once or not at all: with apply_now.
  apply_immediately = var.apply_now
}
