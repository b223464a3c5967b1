# PostgreSQL for jobs, keys and usage. RDS makes the master's password, keeps it in Secrets Manager and rotates it;
# it is in no variable and no state.

resource "aws_db_subnet_group" "this" {
  name_prefix = "${var.cluster_name}-"
  description = "Private subnets of ${var.cluster_name}"
  subnet_ids  = var.subnet_ids
}

resource "aws_security_group" "database" {
  name_prefix = "${var.cluster_name}-database-"
  description = "PostgreSQL, for the pods of the cluster"
  vpc_id      = var.vpc_id

  tags = { Name = "${var.cluster_name}-database" }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  description                  = "PostgreSQL from the cluster"
  referenced_security_group_id = var.client_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_db_parameter_group" "this" {
  name_prefix = "${var.cluster_name}-"
  description = "TLS only; slow statements and changes of the schema are logged"
  family      = "postgres17"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  parameter {
    name  = "log_statement"
    value = "ddl"
  }

  parameter {
    name  = "log_min_duration_statement"
    value = "1000"
  }

  lifecycle {
    create_before_destroy = true
  }
}

# Created before the database, which would make them without a key and keep them for ever.
resource "aws_cloudwatch_log_group" "database" {
  for_each = toset(["postgresql", "upgrade"])

  name              = "/aws/rds/instance/${var.cluster_name}/${each.key}"
  retention_in_days = var.log_days
  kms_key_id        = var.logs_key_arn
}

resource "aws_iam_role" "database_monitoring" {
  name_prefix = "${var.cluster_name}-rds-"
  description = "RDS reports the database's machine"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "monitoring.rds.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "database_monitoring" {
  role       = aws_iam_role.database_monitoring.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole"
}

resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_353:enhanced monitoring, the log of slow statements and the service's own metrics of its store are kept instead
  identifier     = var.cluster_name
  engine         = "postgres"
  engine_version = "17"
  instance_class = var.database_instance_class
  db_name        = "mezzotint"

  username                      = "mezzotint"
  manage_master_user_password   = true
  master_user_secret_kms_key_id = aws_kms_key.data.key_id

  storage_type          = "gp3"
  allocated_storage     = var.database_gib
  max_allocated_storage = var.database_gib * 5
  storage_encrypted     = true
  kms_key_id            = aws_kms_key.data.arn

  multi_az               = var.multi_zone
  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.database.id]
  publicly_accessible    = false
  parameter_group_name   = aws_db_parameter_group.this.name

  maintenance_window = var.maintenance_window
  apply_immediately  = var.apply_now

  # The hour after it. AWS refuses a backup in the maintenance's time, and its own choice of one may lie there.
  backup_window = var.maintenance_window == null ? null : join("-", [
    for minutes in [0, 60] : formatdate("hh:mm", timeadd("2000-01-01T${substr(var.maintenance_window, 14, 5)}:00Z", "${minutes}m"))
  ])

  backup_retention_period    = var.backup_days
  copy_tags_to_snapshot      = true
  auto_minor_version_upgrade = true
  deletion_protection        = var.keep_data
  skip_final_snapshot        = !var.keep_data
  final_snapshot_identifier  = var.keep_data ? "${var.cluster_name}-final" : null
  delete_automated_backups   = !var.keep_data

  iam_database_authentication_enabled = true
  enabled_cloudwatch_logs_exports     = ["postgresql", "upgrade"]
  monitoring_interval                 = 60
  monitoring_role_arn                 = aws_iam_role.database_monitoring.arn

  depends_on = [aws_cloudwatch_log_group.database, aws_iam_role_policy_attachment.database_monitoring]
}
